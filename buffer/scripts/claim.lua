#!lua
-- Leases trajectories to a worker: parked ones of earlier iterations (and those of lost workers) first,
-- oldest first, then pending ones. A trajectory that has spanned max_spans iterations is dropped instead.
--
-- Arguments  ARGV[3] worker, [4] limit, [5] lease in ms, [6] iteration, [7] max_spans (0: no limit), [8] nonce
-- Reads      resting, parked, pending, records, payload:*, lease_clock, replies
-- Writes     records, resting, parked, pending, leases, replies, counts, open, wake:claim; on a drop groups:*
-- Returns    flat list, three a group: id, rows of CLAIMED (buffer/records.py), packed prompt

local stale = check_fence()
if stale then
  return stale
end
local worker, limit, lease_ms = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local iteration, max_spans, nonce = tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8]
local CLAIMED = 'I2I4I4I4I4'

local function answer(claimed)
  local reply = {}
  for i = 1, #claimed, 2 do
    reply[#reply + 1] = claimed[i]
    reply[#reply + 1] = claimed[i + 1]
    reply[#reply + 1] = call('HGET', 'payload:' .. claimed[i], 'prompt')
  end
  return reply
end

local repeated = recall(worker, nonce)
if repeated then
  return answer(repeated)
end

local rested = call('ZRANGEBYSCORE', 'resting', '-inf', '(' .. iteration)
fetch(rested)
for _, id in ipairs(rested) do
  local c = columns[id]
  for i, state in ipairs(c.state) do
    if state == RESTING and c.span_iteration[i] < iteration then
      c.state[i] = PARKED
    end
  end
  changed[id] = true
end
save() -- what follows reads the queues

local expiry = tonumber(call('GET', 'lease_clock') or 0) + lease_ms
local left, claimed = limit, {}

-- Leases a group's samples in a state, as many as are left to claim.
local function lease(id, state)
  local g, c, rows, leased = records[id], columns[id], {}, 0
  local number = number_of(g.workers, worker)
  for i, found in ipairs(c.state) do
    if left == 0 then
      break
    end
    if found == state then
      changed[id] = true
      local fresh = c.span_iteration[i] ~= iteration
      if fresh and max_spans > 0 and c.spans[i] >= max_spans then
        drop(id, i - 1, 'max_spans')
      else
        if fresh then
          c.spans[i], c.span_iteration[i] = c.spans[i] + 1, iteration
        end
        c.state[i], c.worker[i], c.lease_ms[i], c.expiry[i] = LEASED, number, lease_ms, expiry
        local at = #rows
        rows[at + 1], rows[at + 2], rows[at + 3] = i - 1, c.attempts[i], c.spans[i]
        rows[at + 4], rows[at + 5] = c.tokens[i], c.parts[i]
        left, leased = left - 1, leased + 1
      end
    end
  end
  if leased > 0 then
    claimed[#claimed + 1] = id
    claimed[#claimed + 1] = pack_rows(CLAIMED, rows, leased)
  end
end

for _, state in ipairs({PARKED, PENDING}) do
  local first = 0
  while left > 0 do
    local last = first + math.min(left, 16) - 1
    local ids = call('ZRANGE', QUEUES[state], first, last)
    if #ids == 0 then
      break
    end
    fetch(ids)
    for _, id in ipairs(ids) do
      if left > 0 then
        lease(id, state)
      end
    end
    first = last + 1
  end
end

if #claimed > 0 then
  remember(worker, nonce, claimed)
end
save()
rearm('claim', 'parked', 'pending')
return answer(claimed)
