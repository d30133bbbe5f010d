-- What every script shares. buffer/scripts.py puts this text, and that of
-- prelude_records.lua, in front of each script.
--
-- KEYS[1]           <prefix>fence; all other keys are built from its prefix, so they lie in its hash slot
-- ARGV[1], ARGV[2]  the caller's fence: epoch, counter
--
-- Keys and fields are described in buffer/keys.py.

local prefix = string.sub(KEYS[1], 1, -string.len('fence') - 1)

local function call(command, name, ...)
  return redis.call(command, prefix .. name, ...)
end

-- Lua's stack bounds the arguments of one call; 1000 is even, so pairs stay together.
local function call_in_parts(command, name, arguments)
  for first = 1, #arguments, 1000 do
    call(command, name, unpack(arguments, first, math.min(first + 999, #arguments)))
  end
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
