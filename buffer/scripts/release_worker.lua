#!lua flags=allow-oom
-- Parks everything that a dead worker held.
--
-- Arguments  ARGV[3] worker, [4] lost leases that drop a trajectory
-- Reads      held:<worker>, trajectories
-- Writes     held:<worker>, leases, trajectories, parked, replies, counts, open, wake:claim; on a drop also
--            group:*, groups:*
-- Returns    ids

local stale = check_fence()
if stale then
  return stale
end
local ids = call('SMEMBERS', 'held:' .. ARGV[3])
table.sort(ids)
fetch(ids)
for _, id in ipairs(ids) do
  lose_lease(id, tonumber(ARGV[4]))
end
call('HDEL', 'replies', ARGV[3])
save()
return ids
