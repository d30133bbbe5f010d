#!lua
-- News of leased trajectories: appends tokens, renews or ends leases. An update that was applied before
-- changes nothing; one that leaves a gap or overlaps what is stored is refused by itself, the others apply.
--
-- Arguments  ARGV[3] worker; then eight an update: trajectory id, offset, number of tokens, new state,
--            finish reason, weight version, interrupted (1: parked by a pause), packed segment (empty: none)
-- Reads      trajectories, lease_clock
-- Writes     trajectories, segments:*, leases, held:<worker>, resting, parked, finished, counts, open, wake:*
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
  local t, last = records[id], offset + num_tokens
  if not t then
    return refuse_update(id, -1)
  end
  local stored = t.tokens or 0
  if t.worker ~= worker then
    lost[#lost + 1] = id
    return
  end
  if t.state ~= 'leased' then
    local repeated = t.state == state or (t.state == 'scored' and state == 'finished')
    if not repeated or last > stored then
      lost[#lost + 1] = id
    end
    return
  end
  if offset > stored or (offset < stored and last > stored) then
    return refuse_update(id, stored)
  end

  if last > stored then
    call('RPUSH', 'segments:' .. id, segment)
    t.tokens, t.weights = last, weight_version
    changed[id] = true
  end
  if state == 'leased' then
    enqueue('leases', id, now + t.lease_ms)
    return
  end
  unqueue(id, t)
  transition(id, t, state)
  if state == 'finished' then
    t.finish_reason = finish_reason
    enqueue('finished', id, t.sequence)
    wake('score')
  elseif interrupted == '1' then
    enqueue('parked', id, t.sequence)
    wake('claim')
  else
    enqueue('resting', id, t.span_iteration)
  end
end

local ids = {}
for i = 4, #ARGV, 8 do
  ids[#ids + 1] = ARGV[i]
end
fetch(ids)
for i = 4, #ARGV, 8 do
  apply(ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2]), ARGV[i + 3], tonumber(ARGV[i + 4]),
    tonumber(ARGV[i + 5]), ARGV[i + 6], ARGV[i + 7])
end
save()
return {lost, refused}
