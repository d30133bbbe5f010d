-- What every script shares. buffer/scripts.py puts this text in front of each script.
--
-- KEYS[1]           <prefix>fence; all other keys are built from its prefix, so they lie in its hash slot
-- ARGV[1], ARGV[2]  the caller's fence: epoch, counter
--
-- Keys and fields are described in buffer/keys.py.

local prefix = string.sub(KEYS[1], 1, -string.len('fence') - 1)

local function call(command, name, ...)
  return redis.call(command, prefix .. name, ...)
end

-- Errors ----------------------------------------------------------------------------------------------
-- The first word is read by buffer/failures.py.

local function refuse(reason)
  return redis.error_reply('REFUSED ' .. reason)
end

-- An error reply when a newer fence was seen, else nil. A newer fence than the stored one is remembered.
local function check_fence()
  local stored = call('HMGET', 'fence', 'epoch', 'counter')
  local epoch, counter = tonumber(ARGV[1]), tonumber(ARGV[2])
  local seen_epoch, seen_counter = tonumber(stored[1] or 0), tonumber(stored[2] or 0)
  if epoch < 1 or epoch < seen_epoch or (epoch == seen_epoch and counter < seen_counter) then
    return redis.error_reply(string.format('STALE %d,%d %d,%d', epoch, counter, seen_epoch, seen_counter))
  end
  if epoch > seen_epoch or counter > seen_counter then
    call('HSET', 'fence', 'epoch', epoch, 'counter', counter)
  end
  return nil
end

-- Replies kept for a caller that lost one --------------------------------------------------------------

local function recall(caller, nonce)
  local kept = call('HGET', 'replies', caller)
  if kept then
    local reply = cmsgpack.unpack(kept)
    if reply[1] == nonce then
      return reply[2]
    end
  end
  return nil
end

local function remember(caller, nonce, answer)
  call('HSET', 'replies', caller, cmsgpack.pack({nonce, answer}))
end

-- A write without meaning, for a repeated call that has nothing to write: WAITAOF waits for the writes of its
-- own connection, which may be a new one.
local function touch()
  call('HINCRBY', 'fence', 'repeats', 1)
end

-- The state, while a script runs ------------------------------------------------------------------------
-- Trajectories are read into `records`, changed there, and written back with queues and counters by save():
-- one HSET or ZADD of hundreds costs little more than one of one. The last change of a member counts.

local records, changed = {}, {}
local queue_changes, held_changes = {}, {}
local count_changes, open_changes = {}, {}
local woken = {}

-- Lua's stack bounds the arguments of one call; 1000 is even, so pairs stay together.
local function call_in_parts(command, name, arguments)
  for first = 1, #arguments, 1000 do
    call(command, name, unpack(arguments, first, math.min(first + 999, #arguments)))
  end
end

-- Reads trajectories into records; unknown ones stay nil.
local function fetch(ids)
  for first = 1, #ids, 1000 do
    local packed = call('HMGET', 'trajectories', unpack(ids, first, math.min(first + 999, #ids)))
    for i = 1, #packed do
      local id = ids[first + i - 1]
      if packed[i] and not records[id] then
        records[id] = cmsgpack.unpack(packed[i])
      end
    end
  end
end

local function enqueue(queue, id, score)
  queue_changes[queue] = queue_changes[queue] or {}
  queue_changes[queue][id] = score
end

local function dequeue(queue, id)
  enqueue(queue, id, false)
end

local function hold(worker, id, holds)
  held_changes[worker] = held_changes[worker] or {}
  held_changes[worker][id] = holds
end

local function count(field, change)
  count_changes[field] = (count_changes[field] or 0) + change
end

local function count_open(opened, state, change)
  open_changes[opened] = open_changes[opened] or {}
  open_changes[opened][state] = (open_changes[opened][state] or 0) + change
end

-- Moves a trajectory of an open group to another state.
local function transition(id, t, state)
  count_open(t.opened, t.state, -1)
  count_open(t.opened, state, 1)
  count('trajectories.' .. t.state, -1)
  count('trajectories.' .. state, 1)
  t.state = state
  changed[id] = true
end

-- Workers that wait for `claim` or `score` are to look again.
local function wake(name)
  woken[name] = true
end

local function save_members(name, changes, add, remove, with_score)
  local added, removed = {}, {}
  for id, value in pairs(changes) do
    if not value then
      removed[#removed + 1] = id
    else
      if with_score then
        added[#added + 1] = value
      end
      added[#added + 1] = id
    end
  end
  call_in_parts(remove, name, removed)
  call_in_parts(add, name, added)
end

local function save_counts()
  for field, change in pairs(count_changes) do
    if change ~= 0 then
      call('HINCRBY', 'counts', field, change)
    end
  end
  for opened, states in pairs(open_changes) do
    for state, change in pairs(states) do
      local field = opened .. ':' .. state
      if change ~= 0 and call('HINCRBY', 'open', field, change) == 0 then
        call('HDEL', 'open', field)
      end
    end
  end
end

-- Writes everything that changed.
local function save()
  local packed = {}
  for id in pairs(changed) do
    packed[#packed + 1] = id
    packed[#packed + 1] = cmsgpack.pack(records[id])
  end
  call_in_parts('HSET', 'trajectories', packed)
  for queue, changes in pairs(queue_changes) do
    save_members(queue, changes, 'ZADD', 'ZREM', true)
  end
  for worker, changes in pairs(held_changes) do
    save_members('held:' .. worker, changes, 'SADD', 'SREM', false)
  end
  save_counts()
  for name in pairs(woken) do
    if call('LLEN', 'wake:' .. name) == 0 then
      call('RPUSH', 'wake:' .. name, '1')
    end
  end
  changed, queue_changes, held_changes, count_changes, open_changes, woken = {}, {}, {}, {}, {}, {}
end

-- Groups ------------------------------------------------------------------------------------------------

-- The same as common/types.py trajectory_id.
local function member(group, sample)
  return string.format('%s-s%03d', group, sample)
end

-- Ids of a group's trajectories, which are fetched too.
local function fetch_members(group)
  local ids = {}
  for sample = 0, tonumber(call('HGET', 'group:' .. group, 'samples')) - 1 do
    ids[sample + 1] = member(group, sample)
  end
  fetch(ids)
  return ids
end

local function move_group(group, old, new)
  local sequence = call('HGET', 'group:' .. group, 'sequence')
  call('ZREM', 'groups:' .. old, group)
  call('ZADD', 'groups:' .. new, sequence, group)
  call('HSET', 'group:' .. group, 'state', new)
  count('groups.' .. old, -1)
  count('groups.' .. new, 1)
end

-- Closes an open group when each of its trajectories is scored or dropped; `by` is the one that did it.
local function settle(group, by)
  local g = call('HMGET', 'group:' .. group, 'state', 'samples', 'scored', 'dropped', 'iteration')
  local samples, scored, dropped, opened = tonumber(g[2]), tonumber(g[3]), tonumber(g[4]), tonumber(g[5])
  if g[1] == 'open' and scored + dropped == samples then
    count_open(opened, 'scored', -scored)
    count_open(opened, 'dropped', -dropped)
    move_group(group, 'open', dropped == samples and 'dropped' or 'complete')
  elseif g[1] == 'complete' and dropped == samples then
    move_group(group, 'complete', 'dropped')
  else
    return
  end
  call('HSET', 'group:' .. group, 'settled_by', by)
  if dropped == samples then
    call('HSET', 'group:' .. group, 'drop_reason', 'every trajectory was dropped')
  end
end

-- Trajectories, fetched before ----------------------------------------------------------------------------

local function unqueue(id, t)
  if t.state == 'pending' then
    dequeue('pending', id)
  elseif t.state == 'leased' then
    dequeue('leases', id)
    hold(t.worker, id, false)
  elseif t.state == 'parked' then
    dequeue('parked', id)
    dequeue('resting', id)
  elseif t.state == 'finished' then
    dequeue('finished', id)
    dequeue('scoring', id)
  end
end

-- Drops a trajectory and settles its group.
local function drop(id, reason)
  local t = records[id]
  if t.state == 'dropped' then
    return
  end
  unqueue(id, t)
  call('HINCRBY', 'group:' .. t.group, 'dropped', 1)
  if t.state == 'scored' then
    call('HINCRBY', 'group:' .. t.group, 'scored', -1)
  end
  t.drop_reason, t.worker = reason, nil
  local old = t.state
  transition(id, t, 'dropped')
  if call('HGET', 'group:' .. t.group, 'state') ~= 'open' then
    count_open(t.opened, old, 1) -- a closed group is not counted there
    count_open(t.opened, 'dropped', -1)
  end
  settle(t.group, id)
end

-- Drops an open or complete group with all its trajectories.
local function drop_group(group, reason)
  for _, id in ipairs(fetch_members(group)) do
    drop(id, reason)
  end
  call('HSET', 'group:' .. group, 'drop_reason', reason)
end

-- Takes a lease away from a holder that can't use it: parks the trajectory, claimable at once. With a
-- limit, the loss counts as an attempt, and the last attempt drops the trajectory.
local function lose_lease(id, max_attempts)
  local t = records[id]
  if max_attempts then
    t.attempts = (t.attempts or 0) + 1
    if t.attempts >= max_attempts then
      drop(id, 'attempts')
      return
    end
  end
  unqueue(id, t)
  t.worker = nil
  transition(id, t, 'parked')
  enqueue('parked', id, t.sequence)
  wake('claim')
end
