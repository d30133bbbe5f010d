#!lua
-- Leases trajectories to a worker: parked ones of earlier iterations (and those of lost workers) first,
-- oldest first, then pending ones. A trajectory that has spanned max_spans iterations is dropped instead.
--
-- Arguments  ARGV[3] worker, [4] limit, [5] lease in ms, [6] iteration, [7] max_spans (0: no limit), [8] nonce
-- Reads      resting, parked, pending, trajectory:*, lease_clock, replies
-- Writes     resting, parked, pending, trajectory:*, leases, held:<worker>, replies, counts, open, wake:claim;
--            on a drop also group:*, groups:*
-- Returns    flat list, five a trajectory: id, group id, attempts, spans, tokens so far

local stale = check_fence()
if stale then
  return stale
end
local worker, limit, lease_ms = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local iteration, max_spans, nonce = ARGV[6], tonumber(ARGV[7]), ARGV[8]
local repeated = recall(worker, nonce)
if repeated then
  return repeated
end

for _, id in ipairs(call('ZRANGEBYSCORE', 'resting', '-inf', '(' .. iteration)) do
  enqueue('parked', id, call('HGET', 'trajectory:' .. id, 'sequence'))
  dequeue('resting', id)
end
save() -- what follows pops from the queue

local expiry = tonumber(call('GET', 'lease_clock') or 0) + lease_ms
local claimed = {}

local function lease(id)
  local t = call('HMGET', 'trajectory:' .. id, 'state', 'group', 'opened', 'attempts', 'spans', 'span_iteration',
    'tokens')
  local spans = tonumber(t[5] or 0)
  if t[6] ~= iteration then
    if max_spans > 0 and spans >= max_spans then
      drop(id, 'max_spans')
      return 0
    end
    spans = spans + 1
  end
  call('HSET', 'trajectory:' .. id, 'state', 'leased', 'worker', worker, 'lease_ms', lease_ms, 'spans', spans,
    'span_iteration', iteration)
  enqueue('leases', id, expiry)
  hold(worker, id, true)
  transition(t[3], t[1], 'leased')
  local next = #claimed
  claimed[next + 1], claimed[next + 2], claimed[next + 3] = id, t[2], tonumber(t[4] or 0)
  claimed[next + 4], claimed[next + 5] = spans, tonumber(t[7] or 0)
  return 1
end

local left = limit
for _, queue in ipairs({'parked', 'pending'}) do
  while left > 0 do
    local popped = call('ZPOPMIN', queue, left)
    if #popped == 0 then
      break
    end
    for i = 1, #popped, 2 do
      left = left - lease(popped[i])
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
