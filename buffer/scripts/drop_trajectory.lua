#!lua flags=allow-oom
-- Excludes a trajectory; what it holds stays.
--
-- Arguments  ARGV[3] trajectory id, [4] reason
-- Reads      trajectories, group:*
-- Writes     trajectories, the queue it is in, group:*, groups:*, counts, open
-- Returns    {group id} when the group became complete or dropped by it, else {}

local stale = check_fence()
if stale then
  return stale
end
fetch({ARGV[3]})
local t = records[ARGV[3]]
if not t then
  return refuse('trajectory ' .. ARGV[3] .. ' is unknown.')
end
drop(ARGV[3], ARGV[4])
save()
local g = call('HMGET', 'group:' .. t.group, 'settled_by', 'state')
if g[1] == ARGV[3] and (g[2] == 'complete' or g[2] == 'dropped') then
  return {t.group}
end
return {}
