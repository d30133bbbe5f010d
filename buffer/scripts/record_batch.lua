#!lua flags=allow-oom
-- Appends a batch to the branch's redo log and consumes its groups, in one step. The same batch again
-- changes nothing.
--
-- Arguments  ARGV[3] branch, [4] iteration, [5] packed batch, then group ids
-- Reads      redo:<branch>, commit, group:*
-- Writes     fence, redo:<branch>, group:*, groups:*, consumed:<branch>, counts
-- Returns    1 if it was recorded now, 0 if it had been before

local stale = check_fence()
if stale then
  return stale
end
local branch, iteration, batch = ARGV[3], ARGV[4], ARGV[5]
local recorded = call('HGET', 'redo:' .. branch, iteration)
if recorded == batch then
  touch()
  return 0
end
if recorded then
  return refuse('another batch is recorded for branch ' .. branch .. ', iteration ' .. iteration .. '.')
end
local commit = call('HMGET', 'commit', 'branch', 'iteration')
if commit[1] == branch and tonumber(iteration) <= tonumber(commit[2]) then
  return refuse('iteration ' .. iteration .. ' of branch ' .. branch .. ' lies below the commit at ' .. commit[2] .. '.')
end
for i = 6, #ARGV do
  local g = call('HMGET', 'group:' .. ARGV[i], 'state', 'branch')
  if g[1] ~= 'complete' then
    return refuse('group ' .. ARGV[i] .. ' is ' .. (g[1] or 'unknown') .. '; only a complete one can be trained on.')
  end
  if g[2] ~= branch then
    return refuse('group ' .. ARGV[i] .. ' belongs to branch ' .. g[2] .. ', not ' .. branch .. '.')
  end
end

call('HSET', 'redo:' .. branch, iteration, batch)
for i = 6, #ARGV do
  move_group(ARGV[i], 'complete', 'consumed')
  call('HSET', 'group:' .. ARGV[i], 'consumed_iteration', iteration)
  call('ZADD', 'consumed:' .. branch, iteration, ARGV[i])
end
save()
return 1
