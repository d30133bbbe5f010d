#!lua flags=allow-oom
-- A controller takes over the run: issues the next epoch with counter 0. What the former controller's
-- workers held can't be written any more, so leases end (no attempt is counted) and trajectories handed out
-- for scoring are handed out again. A new controller has no fence yet and brings epoch 0; one that renews its own
-- epoch brings its fence, so that a controller that was replaced cannot take the run back.
--
-- Arguments  ARGV[3] nonce: the same call again, after a lost answer, gets the same epoch
-- Reads      fence, leases, scoring, records, lease_clock
-- Writes     fence, replies, records, leases, parked, finished, scoring, counts, open, wake:*
-- Returns    {epoch, lease clock in ms}

if call('HGET', 'fence', 'taker') == ARGV[3] then
  touch()
  return {tonumber(call('HGET', 'fence', 'epoch')), tonumber(call('GET', 'lease_clock') or 0)}
end
if tonumber(ARGV[1]) > 0 then
  local stale = check_fence()
  if stale then
    return stale
  end
end
local epoch = call('HINCRBY', 'fence', 'epoch', 1)
call('HSET', 'fence', 'counter', 0, 'taker', ARGV[3])
call('DEL', 'replies')
for _, queue in ipairs({'leases', 'scoring'}) do
  local ids = call('ZRANGE', queue, 0, -1)
  fetch(ids)
  for _, id in ipairs(ids) do
    for i, state in ipairs(columns[id].state) do
      if state == LEASED then
        lose_lease(id, i - 1, nil)
      elseif state == SCORING then
        columns[id].state[i] = FINISHED
        changed[id] = true
        wake('score')
      end
    end
  end
end
save()
return {epoch, tonumber(call('GET', 'lease_clock') or 0)}
