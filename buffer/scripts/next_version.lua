#!lua flags=allow-oom
-- Issues a weight version that was never used before.
--
-- Arguments  ARGV[3] parent version, [4] branch, [5] iteration, [6] nonce
-- Reads      replies, version
-- Writes     version, weights:<version>, replies
-- Returns    the version

local stale = check_fence()
if stale then
  return stale
end
local repeated = recall('version', ARGV[6])
if repeated then
  return repeated
end
local version = call('INCR', 'version')
call('HSET', 'weights:' .. version, 'parent', ARGV[3], 'branch', ARGV[4], 'iteration', ARGV[5])
remember('version', ARGV[6], version)
return version
