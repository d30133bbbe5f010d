#!lua flags=allow-oom
-- Puts the manifest of a published version into the registry.
--
-- Arguments  ARGV[3] version, [4] packed manifest
-- Reads      weights:<version>
-- Writes     weights:<version>
-- Returns    1

local stale = check_fence()
if stale then
  return stale
end
if call('EXISTS', 'weights:' .. ARGV[3]) == 0 then
  return refuse('weight version ' .. ARGV[3] .. ' was never issued.')
end
call('HSET', 'weights:' .. ARGV[3], 'manifest', ARGV[4])
return 1
