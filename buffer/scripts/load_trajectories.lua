#!lua flags=no-writes
-- Whole trajectories in one answer: asyncio costs more per answer than the server per read. Changes nothing,
-- so it checks no fence; ARGV[1] and ARGV[2] are unused.
--
-- Arguments  from ARGV[3] trajectory ids
-- Reads      trajectories, segments:*, components:*
-- Returns    a list of {group, state, finish reason, attempts, spans, drop reason, components, segments};
--            {} for an unknown id

local ids = {unpack(ARGV, 3)}
fetch(ids)
local answers = {}
for i, id in ipairs(ids) do
  local t = records[id]
  answers[i] = {}
  if t then
    local ended = t.state == 'scored' or t.state == 'dropped'
    answers[i] = {t.group, t.state, t.finish_reason or 0, t.attempts or 0, t.spans or 0, t.drop_reason or '',
      ended and call('GET', 'components:' .. id), call('LRANGE', 'segments:' .. id, 0, -1)}
  end
end
return answers
