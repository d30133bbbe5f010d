#!lua flags=no-writes
-- Whole trajectories in one answer: asyncio costs more per answer than the server per read. Changes nothing,
-- so it checks no fence; ARGV[1] and ARGV[2] are unused.
--
-- Arguments  from ARGV[3] trajectory ids
-- Reads      trajectory:*, segments:*, components:*
-- Returns    a list of {group, state, finish reason, attempts, spans, drop reason, components, segments}; the
--            group is nil for an unknown id

local answers = {}
for i = 3, #ARGV do
  local t = call('HMGET', 'trajectory:' .. ARGV[i], 'group', 'state', 'finish_reason', 'attempts', 'spans',
    'drop_reason')
  t[7] = t[2] == 'scored' or t[2] == 'dropped'
  if t[7] then
    t[7] = call('GET', 'components:' .. ARGV[i])
  end
  t[8] = call('LRANGE', 'segments:' .. ARGV[i], 0, -1)
  answers[#answers + 1] = t
end
return answers
