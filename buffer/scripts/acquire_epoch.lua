#!lua flags=allow-oom
-- A controller takes over the run: issues the next epoch with counter 0. What the former controller's
-- workers held can't be written any more, so leases end (no attempt is counted) and trajectories handed out
-- for scoring are handed out again. The one script that checks no fence, since it issues them.
--
-- Arguments  none (ARGV[1], ARGV[2] are ignored)
-- Reads      leases, scoring, lease_clock
-- Writes     fence, replies, leases, held:*, trajectories, parked, finished, scoring, counts, open, wake:*
-- Returns    {epoch, lease clock in ms}

local epoch = call('HINCRBY', 'fence', 'epoch', 1)
call('HSET', 'fence', 'counter', 0)
call('DEL', 'replies')
local leased = call('ZRANGE', 'leases', 0, -1)
fetch(leased)
for _, id in ipairs(leased) do
  lose_lease(id, nil)
end
if call('EXISTS', 'scoring') == 1 then
  redis.call('ZUNIONSTORE', prefix .. 'finished', 2, prefix .. 'finished', prefix .. 'scoring')
  call('DEL', 'scoring')
  wake('score')
end
save()
return {epoch, tonumber(call('GET', 'lease_clock') or 0)}
