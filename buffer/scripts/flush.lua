#!lua
-- News of leased trajectories: appends tokens, renews or ends leases. An update that was applied before
-- changes nothing; one that leaves a gap or overlaps what is stored is refused by itself, the others apply.
--
-- Arguments  ARGV[3] worker, [4] number of groups, [5] number of updates, [6] a row of UPDATE
--            (buffer/records.py) an update, then the group ids, then a packed segment for each update with tokens
-- Reads      records, lease_clock
-- Writes     records, payload:*, leases, resting, parked, finished, counts, open, wake:*
-- Returns    {numbers of updates whose lease is lost, flat list of refused ones: number, tokens stored (-1:
--            unknown)}; updates count from 0

local stale = check_fence()
if stale then
  return stale
end
local worker, num_groups, num_updates = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local UPDATE, WIDTH = 'I2I2I4I4BBBI8', 8
local updates = unpack_rows(UPDATE, ARGV[6], num_updates)
local groups = {}
for i = 1, num_groups do
  groups[i] = ARGV[6 + i]
end
fetch(groups)

local now = tonumber(call('GET', 'lease_clock') or 0)
local lost, refused, written = {}, {}, {}

local function refuse_update(number, stored)
  refused[#refused + 1] = number
  refused[#refused + 1] = stored
end

local function write(id, c, i, segment, last, version)
  local values, g = written[id] or {}, records[id]
  written[id] = values
  values[#values + 1] = field(i - 1, c.parts[i])
  values[#values + 1] = segment
  g.bytes = g.bytes + #segment
  c.tokens[i], c.parts[i], c.weights[i] = last, c.parts[i] + 1, version
end

local function apply(number, id, sample, offset, num_tokens, state, finish, interrupted, version, segment)
  local g, i = records[id], sample + 1
  if not g or i > g.samples then
    return refuse_update(number, -1)
  end
  local c = columns[id]
  local held, stored, last = c.state[i], c.tokens[i], offset + num_tokens
  if g.workers[c.worker[i]] ~= worker then
    lost[#lost + 1] = number
    return
  end
  if held ~= LEASED then
    local repeated = NAMES[held] == NAMES[state] or (held == SCORED and state == FINISHED)
    if not repeated or last > stored then
      lost[#lost + 1] = number
    end
    return
  end
  if offset > stored or (offset < stored and last > stored) then
    return refuse_update(number, stored)
  end

  changed[id] = true
  if last > stored then
    write(id, c, i, segment, last, version)
  end
  c.expiry[i] = now + c.lease_ms[i]
  if state == FINISHED then
    c.state[i], c.finish[i] = FINISHED, finish
    wake('score')
  elseif state == PARKED and interrupted == 1 then
    c.state[i] = PARKED
    wake('claim')
  elseif state == PARKED then
    c.state[i] = RESTING
  end
end

local segment = 6 + num_groups
for number = 0, num_updates - 1 do
  local u = number * WIDTH
  if updates[u + 4] > 0 then
    segment = segment + 1
  end
  apply(number, groups[updates[u + 1] + 1], updates[u + 2], updates[u + 3], updates[u + 4], updates[u + 5],
    updates[u + 6], updates[u + 7], updates[u + 8], ARGV[segment])
end
for id, values in pairs(written) do
  call_in_parts('HSET', 'payload:' .. id, values)
end
save()
return {lost, refused}
