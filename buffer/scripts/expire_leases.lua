#!lua flags=allow-oom
-- Moves the lease clock forward and parks every trajectory whose lease ran out by it.
--
-- Arguments  ARGV[3] lease clock in ms as the controller counts it, [4] lost leases that drop a trajectory
-- Reads      lease_clock, leases, trajectories
-- Writes     lease_clock, leases, held:*, trajectories, parked, counts, open, wake:claim; on a drop also
--            group:*, groups:*
-- Returns    {lease clock in ms, ids}

local stale = check_fence()
if stale then
  return stale
end
local clock = math.max(tonumber(ARGV[3]), tonumber(call('GET', 'lease_clock') or 0))
call('SET', 'lease_clock', clock)
local ids = call('ZRANGEBYSCORE', 'leases', '-inf', clock)
fetch(ids)
for _, id in ipairs(ids) do
  lose_lease(id, tonumber(ARGV[4]))
end
save()
return {clock, ids}
