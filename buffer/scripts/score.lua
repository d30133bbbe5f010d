#!lua flags=allow-oom
-- Stores reward components of finished trajectories. The first score of a trajectory stays; one that was
-- dropped meanwhile keeps its state. All or nothing: nothing is stored when one of them can't be scored.
--
-- Arguments  from ARGV[3], two a trajectory: id, packed components
-- Reads      trajectory:*, group:*
-- Writes     trajectory:*, components:*, finished, scoring, group:*, groups:*, counts, open
-- Returns    ids of groups that became complete by it

local stale = check_fence()
if stale then
  return stale
end
for i = 3, #ARGV, 2 do
  local state = call('HGET', 'trajectory:' .. ARGV[i], 'state')
  if state ~= 'finished' and state ~= 'scored' and state ~= 'dropped' then
    return refuse('trajectory ' .. ARGV[i] .. ' is ' .. (state or 'unknown') .. '; only a finished one can be scored.')
  end
end

local completed = {}
for i = 3, #ARGV, 2 do
  local id = ARGV[i]
  local t = call('HMGET', 'trajectory:' .. id, 'state', 'group', 'opened')
  if t[1] == 'finished' then
    unqueue(id, 'finished', '')
    call('HSET', 'trajectory:' .. id, 'state', 'scored')
    call('SET', 'components:' .. id, ARGV[i + 1])
    call('HINCRBY', 'group:' .. t[2], 'scored', 1)
    transition(t[3], 'finished', 'scored')
    settle(t[2], id)
  end
  local g = call('HMGET', 'group:' .. t[2], 'settled_by', 'state')
  if t[1] ~= 'dropped' and g[1] == id and g[2] == 'complete' then
    completed[#completed + 1] = t[2]
  end
end
save_counts()
return completed
