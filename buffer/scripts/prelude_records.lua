-- The second half of what every script shares: groups and their samples. It follows prelude.lua.

-- Packed rows -------------------------------------------------------------------------------------------
-- Numbers travel and rest packed: one struct call for many costs a fraction of one table, or one argument, a number.
-- Lua's stack holds some thousands, which bounds samples a group (records.py, MAX_SAMPLES) and updates a call.

local formats = {}

local function row_format(row, count)
  local known = formats[row] or {}
  formats[row] = known
  known[count] = known[count] or '<' .. string.rep(row, count)
  return known[count]
end

-- A flat table of the numbers of count rows.
local function unpack_rows(row, packed, count)
  local flat = {struct.unpack(row_format(row, count), packed)}
  flat[#flat] = nil -- the position after the last one
  return flat
end

local function pack_rows(row, flat, count)
  return struct.pack(row_format(row, count), unpack(flat))
end

-- Records, while a script runs --------------------------------------------------------------------------
-- A group and its samples are one record. A script reads records, changes samples in them, and save() writes
-- them back, and derives from what changed every queue, counter and list that the group is in.
--
-- columns[id].tokens[i] is the number of tokens of the group's sample i - 1, and so on for each column. A column
-- is unpacked when it is first touched and packed again by save(); most scripts touch a few.

local COLUMNS = {
  state = 'B', tokens = 'I4', parts = 'I4', spans = 'I4', span_iteration = 'i4', attempts = 'I2',
  worker = 'I2', lease_ms = 'I4', expiry = 'I8', finish = 'B', weights = 'I8', reason = 'I2',
}

-- States of a sample. RESTING is parked until a later iteration; SCORING is finished and handed out.
local PENDING, LEASED, PARKED, RESTING, FINISHED, SCORING, SCORED, DROPPED = 1, 2, 3, 4, 5, 6, 7, 8
local NAMES = {'pending', 'leased', 'parked', 'parked', 'finished', 'finished', 'scored', 'dropped'}

-- Bytes that a trajectory may still need: 9 a token, and what surrounds its segments.
local TOKEN_BYTES, TRAJECTORY_BYTES = 9, 512

local records, columns, before, changed = {}, {}, {}, {}
local woken = {}

local lazy = {
  __index = function(unpacked, name)
    local g = unpacked[0]
    local values = unpack_rows(COLUMNS[name], g.columns[name], g.samples)
    unpacked[name] = values
    return values
  end,
}

local function add_record(id, g)
  records[id], columns[id] = g, setmetatable({[0] = g}, lazy)
end

-- Reads groups into records and columns; unknown ones stay nil.
local function fetch(ids)
  local wanted = {}
  for _, id in ipairs(ids) do
    if not records[id] then
      wanted[#wanted + 1] = id
    end
  end
  for first = 1, #wanted, 1000 do
    local packed = call('HMGET', 'records', unpack(wanted, first, math.min(first + 999, #wanted)))
    for i = 1, #packed do
      local id = wanted[first + i - 1]
      if packed[i] and not records[id] then
        local g = cmsgpack.unpack(packed[i])
        add_record(id, g)
        before[id] = {
          state = g.state, columns = g.columns.state, expiry = g.expiry, resting = g.resting, reserved = g.reserved,
          bytes = g.bytes,
        }
      end
    end
  end
end

-- Field of a payload that holds a sample's part (a number, or 'score'); numbers are slow to print, so kept.
local fields = {}

local function field(sample, part)
  local known = fields[part] or {}
  fields[part] = known
  known[sample] = known[sample] or sample .. ':' .. part
  return known[sample]
end

-- The same as common/types.py trajectory_id.
local function member(group, sample)
  return string.format('%s-s%03d', group, sample)
end

-- Workers that wait for `claim` or `score` are to look again.
local function wake(name)
  woken[name] = true
end

-- Number of a name in a record's list of workers or reasons, which are few.
local function number_of(names, name)
  for i = 1, #names do
    if names[i] == name then
      return i
    end
  end
  names[#names + 1] = name
  return #names
end

local QUEUES = {[PENDING] = 'pending', [PARKED] = 'parked', [FINISHED] = 'finished', [SCORING] = 'scoring'}

-- Samples by state; packed: the column of states, nil for a new group.
local function tally(packed, count)
  local numbers = {0, 0, 0, 0, 0, 0, 0, 0}
  if packed then
    for i = 1, count do
      local state = string.byte(packed, i)
      numbers[state] = numbers[state] + 1
    end
  end
  return numbers
end

-- Notes in a record what queues and counters need: first expiry, first iteration that rests, bytes reserved.
local function derive(g, c, numbers)
  g.expiry, g.resting, g.reserved = false, false, 0
  local timed, running = numbers[LEASED] + numbers[RESTING], numbers[PENDING] + numbers[PARKED]
  if timed + (g.limit > 0 and running or 0) == 0 then
    return
  end
  local states = c.state
  for i = 1, g.samples do
    local state = states[i]
    if state == LEASED and (not g.expiry or c.expiry[i] < g.expiry) then
      g.expiry = c.expiry[i]
    elseif state == RESTING and (not g.resting or c.span_iteration[i] < g.resting) then
      g.resting = c.span_iteration[i]
    end
    if state <= RESTING and g.limit > 0 then
      g.reserved = g.reserved + math.max(g.limit - c.tokens[i], 0) * TOKEN_BYTES + TRAJECTORY_BYTES
    end
  end
end

local added, removed, totals, open_totals

local function put(queue, id, score)
  local list = added[queue] or {}
  added[queue] = list
  list[#list + 1] = score
  list[#list + 1] = id
end

local function take(queue, id)
  local list = removed[queue] or {}
  removed[queue] = list
  list[#list + 1] = id
end

local function count(changes, name, change)
  changes[name] = (changes[name] or 0) + change
end

-- Puts a group into a queue, moves it or takes it out; a score is a number or false.
local function requeue(queue, id, old, new)
  if new and new ~= old then
    put(queue, id, new)
  elseif old and not new then
    take(queue, id)
  end
end

local function compare_samples(id, g, old)
  local was, is = tally(old.columns, g.samples), tally(g.columns.state, g.samples)
  derive(g, columns[id], is)
  for state, queue in pairs(QUEUES) do
    requeue(queue, id, was[state] > 0 and g.sequence, is[state] > 0 and g.sequence)
  end
  local opened = open_totals[g.iteration] or {0, 0, 0, 0, 0, 0, 0, 0}
  open_totals[g.iteration] = opened
  local open_was, open_is = old.state == 'open', g.state == 'open'
  for state = 1, DROPPED do
    local before_it, after_it = was[state], is[state]
    if before_it > 0 or after_it > 0 then
      totals[state] = totals[state] + after_it - before_it
      opened[state] = opened[state] + (open_is and after_it or 0) - (open_was and before_it or 0)
    end
  end
end

-- Notes where a record's changes put its group.
local function compare(id, g, counters)
  local old = before[id] or {state = '', expiry = false, resting = false, reserved = 0, bytes = 0}
  local c = columns[id]
  if rawget(c, 'state') then
    if old.columns == g.columns.state and old.state == g.state then
      derive(g, c, tally(g.columns.state, g.samples))
    else
      compare_samples(id, g, old)
    end
    requeue('leases', id, old.expiry, g.expiry)
    requeue('resting', id, old.resting, g.resting)
    count(counters, 'reserved', g.reserved - old.reserved)
  end
  if old.state ~= g.state then
    if g.archived == '' then
      put('groups:' .. g.state, id, g.sequence)
    end
    count(counters, 'groups.' .. g.state, 1)
    if old.state ~= '' then
      take('groups:' .. old.state, id)
      count(counters, 'groups.' .. old.state, -1)
    end
  end
  count(counters, 'bytes', g.bytes - old.bytes)
end

local function save_counters(counters)
  for state, name in ipairs(NAMES) do
    count(counters, 'trajectories.' .. name, totals[state])
  end
  for name, change in pairs(counters) do
    if change ~= 0 then
      call('HINCRBY', 'counts', name, change)
    end
  end
  for iteration, opened in pairs(open_totals) do
    local changes = {}
    for state, name in ipairs(NAMES) do
      count(changes, iteration .. ':' .. name, opened[state])
    end
    for name, change in pairs(changes) do
      if change ~= 0 and call('HINCRBY', 'open', name, change) == 0 then
        call('HDEL', 'open', name)
      end
    end
  end
end

-- Writes everything that changed.
local function save()
  added, removed, totals, open_totals = {}, {}, {0, 0, 0, 0, 0, 0, 0, 0}, {}
  local packed, counters = {}, {}
  for id in pairs(changed) do
    local g = records[id]
    for name, values in pairs(columns[id]) do
      if name ~= 0 then
        g.columns[name] = pack_rows(COLUMNS[name], values, g.samples)
      end
    end
    compare(id, g, counters)
    before[id] = {
      state = g.state, columns = g.columns.state, expiry = g.expiry, resting = g.resting, reserved = g.reserved,
      bytes = g.bytes,
    }
    packed[#packed + 1] = id
    packed[#packed + 1] = cmsgpack.pack(g)
  end
  if #packed > 0 then
    call_in_parts('HSET', 'records', packed)
    for queue, list in pairs(removed) do
      call_in_parts('ZREM', queue, list)
    end
    for queue, list in pairs(added) do
      call_in_parts('ZADD', queue, list)
    end
    save_counters(counters)
  end
  for name in pairs(woken) do
    if call('LLEN', 'wake:' .. name) == 0 then
      call('RPUSH', 'wake:' .. name, '1')
    end
  end
  changed, woken = {}, {}
end

-- After a claim: a hint for the next worker when one of the queues has more, else none.
local function rearm(name, ...)
  local left = 0
  for _, queue in ipairs({...}) do
    left = left + call('ZCARD', queue)
  end
  if left == 0 then
    call('DEL', 'wake:' .. name)
  elseif call('LLEN', 'wake:' .. name) == 0 then
    call('RPUSH', 'wake:' .. name, '1')
  end
end

-- Changes of fetched records ----------------------------------------------------------------------------

-- Closes a group when each of its samples is scored or dropped; `by` is the sample that did it.
local function settle(id, by)
  local g, scored, dropped = records[id], 0, 0
  for _, state in ipairs(columns[id].state) do
    if state == SCORED then
      scored = scored + 1
    elseif state == DROPPED then
      dropped = dropped + 1
    end
  end
  if g.state == 'open' and scored + dropped == g.samples then
    g.state = dropped == g.samples and 'dropped' or 'complete'
  elseif g.state == 'complete' and dropped == g.samples then
    g.state = 'dropped'
  else
    return
  end
  g.settled_by = by
  if dropped == g.samples then
    g.drop_reason = 'every trajectory was dropped'
  end
  changed[id] = true
end

-- Drops a sample and settles its group; what it holds stays.
local function drop(id, sample, reason)
  local c, i = columns[id], sample + 1
  if c.state[i] == DROPPED then
    return
  end
  c.state[i], c.worker[i], c.reason[i] = DROPPED, 0, number_of(records[id].reasons, reason)
  changed[id] = true
  settle(id, sample)
end

-- Drops an open or complete group with all its samples.
local function drop_group(id, reason)
  for sample = 0, records[id].samples - 1 do
    drop(id, sample, reason)
  end
  records[id].drop_reason = reason
  changed[id] = true
end

-- Takes a lease away from a holder that can't use it: parks the sample, claimable at once. With a limit, the
-- loss counts as an attempt, and the last attempt drops the sample.
local function lose_lease(id, sample, max_attempts)
  local c, i = columns[id], sample + 1
  changed[id] = true
  if max_attempts then
    c.attempts[i] = c.attempts[i] + 1
    if c.attempts[i] >= max_attempts then
      drop(id, sample, 'attempts')
      return
    end
  end
  c.state[i], c.worker[i] = PARKED, 0
  wake('claim')
end
