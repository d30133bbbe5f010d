#!lua flags=allow-oom
-- The next counter within the caller's epoch.
--
-- Arguments  ARGV[3] nonce of the call
-- Reads      fence, replies
-- Writes     fence, replies
-- Returns    {epoch, counter}

local repeated = recall('fence', ARGV[3])
if repeated then
  return repeated
end
local stale = check_fence()
if stale then
  return stale
end
local counter = call('HINCRBY', 'fence', 'counter', 1)
local answer = {tonumber(ARGV[1]), counter}
remember('fence', ARGV[3], answer)
return answer
