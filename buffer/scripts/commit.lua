#!lua flags=allow-oom
-- Moves the commit marker to a checkpoint whose manifest is in place, and trims the branch's redo log up to
-- it.
--
-- Arguments  ARGV[3] branch, [4] iteration, [5] manifest
-- Reads      commit, redo:<branch>
-- Writes     commit, redo:<branch>
-- Returns    1

local stale = check_fence()
if stale then
  return stale
end
local branch, iteration, manifest = tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
local known = call('HMGET', 'commit', 'branch', 'iteration')
local known_branch, known_iteration = tonumber(known[1] or -1), tonumber(known[2] or -1)
if branch < known_branch or (branch == known_branch and iteration < known_iteration) then
  return refuse(string.format('commit of branch %d, iteration %d lies below the commit at branch %d, iteration %d.',
    branch, iteration, known_branch, known_iteration))
end
call('HSET', 'commit', 'branch', ARGV[3], 'iteration', ARGV[4], 'manifest', manifest)
for _, recorded in ipairs(call('HKEYS', 'redo:' .. ARGV[3])) do
  if tonumber(recorded) <= iteration then
    call('HDEL', 'redo:' .. ARGV[3], recorded)
  end
end
return 1
