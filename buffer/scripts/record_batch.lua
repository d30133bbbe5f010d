#!lua flags=allow-oom
-- Appends a batch to the branch's redo log and consumes its groups, in one step. The same batch again
-- changes nothing.
--
-- Arguments  ARGV[3] branch, [4] iteration, [5] packed batch, then group ids
-- Reads      redo:<branch>, commit, records
-- Writes     fence, redo:<branch>, records, groups:*, consumed:<branch>, counts
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
local ids = {unpack(ARGV, 6)}
fetch(ids)
for _, id in ipairs(ids) do
  local g = records[id]
  if not g or g.state ~= 'complete' then
    return refuse('group ' .. id .. ' is ' .. (g and g.state or 'unknown') .. '; only a complete one can be trained on.')
  end
  if g.branch ~= tonumber(branch) then
    return refuse('group ' .. id .. ' belongs to branch ' .. g.branch .. ', not ' .. branch .. '.')
  end
end

call('HSET', 'redo:' .. branch, iteration, batch)
local consumed = {}
for _, id in ipairs(ids) do
  records[id].state, records[id].consumed_iteration, changed[id] = 'consumed', tonumber(iteration), true
  consumed[#consumed + 1] = iteration
  consumed[#consumed + 1] = id
end
call_in_parts('ZADD', 'consumed:' .. branch, consumed)
save()
return 1
