#!lua flags=allow-oom
-- Stores reward components of finished trajectories. The first score of a trajectory stays; one that was
-- dropped meanwhile keeps its state. All or nothing: nothing is stored when one of them can't be scored.
--
-- Arguments  from ARGV[3], two a trajectory: id, packed components
-- Reads      trajectories, group:*
-- Writes     trajectories, components:*, finished, scoring, group:*, groups:*, counts, open
-- Returns    ids of groups that became complete by it

local stale = check_fence()
if stale then
  return stale
end
local ids = {}
for i = 3, #ARGV, 2 do
  ids[#ids + 1] = ARGV[i]
end
fetch(ids)
for _, id in ipairs(ids) do
  local state = records[id] and records[id].state or 'unknown'
  if state ~= 'finished' and state ~= 'scored' and state ~= 'dropped' then
    return refuse('trajectory ' .. id .. ' is ' .. state .. '; only a finished one can be scored.')
  end
end

local scored, last = {}, {}
for i, id in ipairs(ids) do
  local t = records[id]
  if t.state == 'finished' then
    unqueue(id, t)
    transition(id, t, 'scored')
    call('SET', 'components:' .. id, ARGV[2 * i + 2])
    scored[t.group], last[t.group] = (scored[t.group] or 0) + 1, id
  end
end
for group, number in pairs(scored) do
  call('HINCRBY', 'group:' .. group, 'scored', number)
  settle(group, last[group])
end

local groups, completed = {}, {}
for _, id in ipairs(ids) do
  local t = records[id]
  groups[t.group] = groups[t.group] or call('HMGET', 'group:' .. t.group, 'settled_by', 'state')
  local g = groups[t.group]
  if t.state == 'scored' and g[1] == id and g[2] == 'complete' then
    completed[#completed + 1] = t.group
  end
end
save()
return completed
