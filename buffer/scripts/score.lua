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
local known = {}
for i = 3, #ARGV, 2 do
  local t = call('HMGET', 'trajectory:' .. ARGV[i], 'state', 'group', 'opened')
  if t[1] ~= 'finished' and t[1] ~= 'scored' and t[1] ~= 'dropped' then
    return refuse('trajectory ' .. ARGV[i] .. ' is ' .. (t[1] or 'unknown') .. '; only a finished one can be scored.')
  end
  known[ARGV[i]] = t
end

local scored, last = {}, {}
for i = 3, #ARGV, 2 do
  local id, t = ARGV[i], known[ARGV[i]]
  if t[1] == 'finished' then
    t[1] = 'scored'
    unqueue(id, 'finished', '')
    call('HSET', 'trajectory:' .. id, 'state', 'scored')
    call('SET', 'components:' .. id, ARGV[i + 1])
    transition(t[3], 'finished', 'scored')
    scored[t[2]], last[t[2]] = (scored[t[2]] or 0) + 1, id
  end
end
for group, number in pairs(scored) do
  call('HINCRBY', 'group:' .. group, 'scored', number)
  settle(group, last[group])
end

local groups, completed = {}, {}
for i = 3, #ARGV, 2 do
  local id, t = ARGV[i], known[ARGV[i]]
  groups[t[2]] = groups[t[2]] or call('HMGET', 'group:' .. t[2], 'settled_by', 'state')
  local g = groups[t[2]]
  if t[1] == 'scored' and g[1] == id and g[2] == 'complete' then
    completed[#completed + 1] = t[2]
  end
end
save()
return completed
