#!lua
-- News of leased trajectories: appends tokens, renews or ends leases. An update that was applied before
-- changes nothing; one that leaves a gap or overlaps what is stored is refused by itself, the others apply.
--
-- Arguments  ARGV[3] worker; then eight an update: trajectory id, offset, number of tokens, new state,
--            finish reason, weight version, interrupted (1: parked by a pause), packed segment (empty: none)
-- Reads      trajectory:*, lease_clock
-- Writes     trajectory:*, segments:*, leases, held:<worker>, resting, parked, finished, counts, open, wake:*
-- Returns    {ids whose lease is lost, flat list of refused updates: id, tokens stored (-1: unknown id)}

local stale = check_fence()
if stale then
  return stale
end
local worker = ARGV[3]
local now = tonumber(call('GET', 'lease_clock') or 0)
local lost, refused = {}, {}

local function refuse_update(id, stored)
  refused[#refused + 1] = id
  refused[#refused + 1] = stored
end

local function apply(id, offset, num_tokens, state, finish_reason, weight_version, interrupted, segment)
  local t = call('HMGET', 'trajectory:' .. id, 'state', 'worker', 'tokens', 'lease_ms', 'sequence', 'opened',
    'span_iteration')
  local stored, last = tonumber(t[3] or 0), offset + num_tokens
  if not t[1] then
    return refuse_update(id, -1)
  end
  if t[2] ~= worker then
    lost[#lost + 1] = id
    return
  end
  if t[1] ~= 'leased' then
    local repeated = t[1] == state or (t[1] == 'scored' and state == 'finished')
    if not repeated or last > stored then
      lost[#lost + 1] = id
    end
    return
  end
  if offset > stored or (offset < stored and last > stored) then
    return refuse_update(id, stored)
  end

  local fields = {'state', state}
  if last > stored then
    call('RPUSH', 'segments:' .. id, segment)
    fields = {'state', state, 'tokens', last, 'weights', weight_version}
  end
  if state == 'leased' then
    enqueue('leases', id, now + tonumber(t[4]))
  else
    dequeue('leases', id)
    hold(worker, id, false)
    transition(t[6], 'leased', state)
  end
  if state == 'parked' and interrupted == '1' then
    enqueue('parked', id, t[5])
    wake('claim')
  elseif state == 'parked' then
    enqueue('resting', id, t[7])
  elseif state == 'finished' then
    fields[#fields + 1], fields[#fields + 2] = 'finish_reason', finish_reason
    enqueue('finished', id, t[5])
    wake('score')
  end
  call('HSET', 'trajectory:' .. id, unpack(fields))
end

for i = 4, #ARGV, 8 do
  apply(ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2]), ARGV[i + 3], ARGV[i + 4], ARGV[i + 5], ARGV[i + 6],
    ARGV[i + 7])
end
save()
return {lost, refused}
