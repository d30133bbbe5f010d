#!lua flags=no-writes
-- What is known of groups, without their trajectories. Changes nothing, so it checks no fence.
--
-- Arguments  from ARGV[3] group ids
-- Reads      records
-- Returns    a list of {prompt id, state, branch, iteration, stage, samples, consumed iteration, drop reason,
--            archive}; {} for an unknown id

local ids = {unpack(ARGV, 3)}
fetch(ids)
local answers = {}
for i, id in ipairs(ids) do
  local g = records[id]
  answers[i] = g and {g.prompt_id, g.state, g.branch, g.iteration, g.stage, g.samples, g.consumed_iteration,
    g.drop_reason, g.archived} or {}
end
return answers
