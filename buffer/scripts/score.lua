#!lua flags=allow-oom
-- Stores reward components of finished trajectories. The first score of a trajectory stays; one that was
-- dropped meanwhile keeps its state. All or nothing: nothing is stored when one of them can't be scored.
--
-- Arguments  ARGV[3] number of groups, [4] number of trajectories, [5] a row of MEMBER (buffer/records.py) a
--            trajectory, then the group ids, then packed components a trajectory
-- Reads      records
-- Writes     records, payload:*, finished, scoring, groups:*, counts, open
-- Returns    ids of groups that became complete by it

local stale = check_fence()
if stale then
  return stale
end
local num_groups, num_scored = tonumber(ARGV[3]), tonumber(ARGV[4])
local members = unpack_rows('I2I2', ARGV[5], num_scored)
local groups = {}
for i = 1, num_groups do
  groups[i] = ARGV[5 + i]
end
fetch(groups)
for m = 1, 2 * num_scored, 2 do
  local id, sample = groups[members[m] + 1], members[m + 1]
  local state = records[id] and columns[id].state[sample + 1]
  if not state or state < FINISHED then
    return refuse('trajectory ' .. member(id, sample) .. ' is ' .. (state and NAMES[state] or 'unknown')
      .. '; only a finished one can be scored.')
  end
end

local written, last = {}, {}
for m = 1, 2 * num_scored, 2 do
  local id, sample = groups[members[m] + 1], members[m + 1]
  local states = columns[id].state
  if states[sample + 1] < SCORED then
    local components = ARGV[6 + num_groups + (m - 1) / 2]
    local values = written[id] or {}
    written[id], last[id], changed[id] = values, sample, true
    states[sample + 1] = SCORED
    values[#values + 1] = field(sample, 'score')
    values[#values + 1] = components
    records[id].bytes = records[id].bytes + #components
  end
end
for id, values in pairs(written) do
  call_in_parts('HSET', 'payload:' .. id, values)
  settle(id, last[id])
end

local completed = {}
for m = 1, 2 * num_scored, 2 do
  local id, sample = groups[members[m] + 1], members[m + 1]
  local g = records[id]
  if g.settled_by == sample and g.state == 'complete' and columns[id].state[sample + 1] == SCORED then
    completed[#completed + 1] = id
  end
end
save()
return completed
