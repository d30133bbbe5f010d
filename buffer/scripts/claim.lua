#!lua
-- Leases trajectories to a worker: parked ones of earlier iterations (and those of lost workers) first,
-- oldest first, then pending ones. A trajectory that has spanned max_spans iterations is dropped instead.
--
-- Arguments  ARGV[3] worker, [4] limit, [5] lease in ms, [6] iteration, [7] max_spans (0: no limit), [8] nonce
-- Reads      resting, parked, pending, trajectories, lease_clock, replies
-- Writes     resting, parked, pending, trajectories, leases, held:<worker>, replies, counts, open, wake:claim;
--            on a drop also group:*, groups:*
-- Returns    flat list, five a trajectory: id, group id, attempts, spans, tokens so far

local stale = check_fence()
if stale then
  return stale
end
local worker, limit, lease_ms = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local iteration, max_spans, nonce = tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8]
local repeated = recall(worker, nonce)
if repeated then
  return repeated
end

local rested = call('ZRANGEBYSCORE', 'resting', '-inf', '(' .. iteration)
fetch(rested)
for _, id in ipairs(rested) do
  enqueue('parked', id, records[id].sequence)
  dequeue('resting', id)
end
save() -- what follows pops from the queue

local expiry = tonumber(call('GET', 'lease_clock') or 0) + lease_ms
local claimed = {}

-- True unless the trajectory was dropped instead.
local function lease(id)
  local t = records[id]
  if t.span_iteration ~= iteration then
    if max_spans > 0 and (t.spans or 0) >= max_spans then
      drop(id, 'max_spans')
      return false
    end
    t.spans, t.span_iteration = (t.spans or 0) + 1, iteration
  end
  t.worker, t.lease_ms = worker, lease_ms
  transition(id, t, 'leased')
  enqueue('leases', id, expiry)
  hold(worker, id, true)
  for _, value in ipairs({id, t.group, t.attempts or 0, t.spans, t.tokens or 0}) do
    claimed[#claimed + 1] = value
  end
  return true
end

local left = limit
for _, queue in ipairs({'parked', 'pending'}) do
  while left > 0 do
    local popped, ids = call('ZPOPMIN', queue, left), {}
    for i = 1, #popped, 2 do
      ids[#ids + 1] = popped[i]
    end
    if #ids == 0 then
      break
    end
    fetch(ids)
    for _, id in ipairs(ids) do
      left = lease(id) and left - 1 or left
    end
  end
end

if call('ZCARD', 'parked') + call('ZCARD', 'pending') > 0 then
  wake('claim')
else
  call('DEL', 'wake:claim')
end
if #claimed > 0 then
  remember(worker, nonce, claimed)
end
save()
return claimed
