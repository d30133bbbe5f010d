#!lua flags=allow-oom
-- Moves the lease clock forward and parks every trajectory whose lease ran out by it.
--
-- Arguments  ARGV[3] lease clock in ms as the controller counts it, [4] lost leases that drop a trajectory
-- Reads      lease_clock, leases, records
-- Writes     lease_clock, records, leases, parked, counts, open, wake:claim; on a drop groups:*
-- Returns    {lease clock in ms, ids, those that ran out first first}

local stale = check_fence()
if stale then
  return stale
end
local clock = math.max(tonumber(ARGV[3]), tonumber(call('GET', 'lease_clock') or 0))
call('SET', 'lease_clock', clock)
local groups = call('ZRANGEBYSCORE', 'leases', '-inf', clock)
fetch(groups)
local expired = {}
for _, id in ipairs(groups) do
  local c = columns[id]
  for i, state in ipairs(c.state) do
    if state == LEASED and c.expiry[i] <= clock then
      expired[#expired + 1] = {c.expiry[i], member(id, i - 1), id, i - 1}
    end
  end
end
table.sort(expired, function(a, b)
  return a[1] < b[1] or (a[1] == b[1] and a[2] < b[2])
end)
local names = {}
for i, one in ipairs(expired) do
  names[i] = one[2]
  lose_lease(one[3], one[4], tonumber(ARGV[4]))
end
save()
return {clock, names}
