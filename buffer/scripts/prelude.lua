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

-- Queues and counters: changes are gathered and written once, by save() ----------------------------------
-- One ZADD of hundreds of members costs little more than one of one. The last change of a member counts.

local queue_changes, held_changes = {}, {}
local count_changes, open_changes = {}, {}
local woken = {}

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
  local field = opened .. ':' .. state
  open_changes[field] = (open_changes[field] or 0) + change
end

local function transition(opened, old, new)
  count('trajectories.' .. old, -1)
  count('trajectories.' .. new, 1)
  count_open(opened, old, -1)
  count_open(opened, new, 1)
end

-- Workers that wait for `claim` or `score` are to look again.
local function wake(name)
  woken[name] = true
end

-- Lua's stack bounds the arguments of one call.
local function call_in_parts(command, name, arguments)
  for first = 1, #arguments, 1000 do
    call(command, name, unpack(arguments, first, math.min(first + 999, #arguments)))
  end
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

local function save()
  for queue, changes in pairs(queue_changes) do
    save_members(queue, changes, 'ZADD', 'ZREM', true)
  end
  for worker, changes in pairs(held_changes) do
    save_members('held:' .. worker, changes, 'SADD', 'SREM', false)
  end
  for field, change in pairs(count_changes) do
    if change ~= 0 then
      call('HINCRBY', 'counts', field, change)
    end
  end
  for field, change in pairs(open_changes) do
    if change ~= 0 and call('HINCRBY', 'open', field, change) == 0 then
      call('HDEL', 'open', field)
    end
  end
  for name in pairs(woken) do
    if call('LLEN', 'wake:' .. name) == 0 then
      call('RPUSH', 'wake:' .. name, '1')
    end
  end
  queue_changes, held_changes, count_changes, open_changes, woken = {}, {}, {}, {}, {}
end

-- Groups ------------------------------------------------------------------------------------------------

-- The same as common/types.py trajectory_id.
local function member(group, sample)
  return string.format('%s-s%03d', group, sample)
end

local function move_group(group, old, new)
  local sequence = call('HGET', 'group:' .. group, 'sequence')
  call('ZREM', 'groups:' .. old, group)
  call('ZADD', 'groups:' .. new, sequence, group)
  call('HSET', 'group:' .. group, 'state', new)
  count('groups.' .. old, -1)
  count('groups.' .. new, 1)
end

-- Closes an open group when each of its trajectories is scored or dropped; true if it did.
local function settle(group, by)
  local g = call('HMGET', 'group:' .. group, 'state', 'samples', 'scored', 'dropped', 'iteration')
  local samples, scored, dropped = tonumber(g[2]), tonumber(g[3]), tonumber(g[4])
  if g[1] == 'open' and scored + dropped == samples then
    count_open(g[5], 'scored', -scored)
    count_open(g[5], 'dropped', -dropped)
    move_group(group, 'open', dropped == samples and 'dropped' or 'complete')
  elseif g[1] == 'complete' and dropped == samples then
    move_group(group, 'complete', 'dropped')
  else
    return false
  end
  call('HSET', 'group:' .. group, 'settled_by', by)
  if dropped == samples then
    call('HSET', 'group:' .. group, 'drop_reason', 'every trajectory was dropped')
  end
  return true
end

-- Trajectories ------------------------------------------------------------------------------------------

local function unqueue(id, state, worker)
  if state == 'pending' then
    dequeue('pending', id)
  elseif state == 'leased' then
    dequeue('leases', id)
    hold(worker, id, false)
  elseif state == 'parked' then
    dequeue('parked', id)
    dequeue('resting', id)
  elseif state == 'finished' then
    dequeue('finished', id)
    dequeue('scoring', id)
  end
end

-- Drops one trajectory and settles its group; true if the group left its state by it.
local function drop(id, reason)
  local t = call('HMGET', 'trajectory:' .. id, 'state', 'group', 'worker', 'opened')
  local state, group, opened = t[1], t[2], t[4]
  if state == 'dropped' then
    return false
  end
  unqueue(id, state, t[3])
  call('HSET', 'trajectory:' .. id, 'state', 'dropped', 'drop_reason', reason, 'worker', '')
  call('HINCRBY', 'group:' .. group, 'dropped', 1)
  if state == 'scored' then
    call('HINCRBY', 'group:' .. group, 'scored', -1)
  end
  if call('HGET', 'group:' .. group, 'state') == 'open' then
    transition(opened, state, 'dropped')
  else
    count('trajectories.' .. state, -1)
    count('trajectories.dropped', 1)
  end
  return settle(group, id)
end

-- Drops an open or complete group with all its trajectories.
local function drop_group(group, reason)
  for sample = 0, tonumber(call('HGET', 'group:' .. group, 'samples')) - 1 do
    drop(member(group, sample), reason)
  end
  call('HSET', 'group:' .. group, 'drop_reason', reason)
end

-- Takes a lease away from a holder that can't use it: parks the trajectory, claimable at once. With a
-- limit, the loss counts as an attempt, and the last attempt drops the trajectory.
local function lose_lease(id, max_attempts)
  local t = call('HMGET', 'trajectory:' .. id, 'worker', 'opened', 'sequence', 'attempts')
  if max_attempts then
    local attempts = tonumber(t[4] or 0) + 1
    call('HSET', 'trajectory:' .. id, 'attempts', attempts)
    if attempts >= max_attempts then
      drop(id, 'attempts')
      return
    end
  end
  unqueue(id, 'leased', t[1])
  call('HSET', 'trajectory:' .. id, 'state', 'parked', 'worker', '')
  enqueue('parked', id, t[3])
  transition(t[2], 'leased', 'parked')
  wake('claim')
end
