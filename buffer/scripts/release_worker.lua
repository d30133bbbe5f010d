#!lua flags=allow-oom
-- Parks everything that a dead worker held. Looks at every group with a lease: workers die seldom.
--
-- Arguments  ARGV[3] worker, [4] lost leases that drop a trajectory
-- Reads      leases, records
-- Writes     records, leases, parked, replies, counts, open, wake:claim; on a drop groups:*
-- Returns    ids

local stale = check_fence()
if stale then
  return stale
end
local groups = call('ZRANGE', 'leases', 0, -1)
fetch(groups)
local names = {}
for _, id in ipairs(groups) do
  local c = columns[id]
  for i, state in ipairs(c.state) do
    if state == LEASED and records[id].workers[c.worker[i]] == ARGV[3] then
      names[#names + 1] = member(id, i - 1)
      lose_lease(id, i - 1, tonumber(ARGV[4]))
    end
  end
end
call('HDEL', 'replies', ARGV[3])
save()
return names
