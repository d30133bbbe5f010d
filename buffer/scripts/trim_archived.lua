#!lua flags=allow-oom
-- Lets go of what the archive holds: prompts, segments and components of ended groups. The group
-- stays with the name of its file. Groups above the newest commit are refused, since the redo log needs them.
-- All or nothing; a group that is trimmed already keeps its first pointer.
--
-- Arguments  ARGV[1] the archiver's token (ARGV[2] is ignored); from ARGV[3], two a group: id, archive file
-- Reads      archiver, commit, records
-- Writes     records, groups:*, payload:*, counts
-- Returns    how many groups were trimmed now

local newest = tonumber(call('GET', 'archiver') or 0)
if tonumber(ARGV[1]) ~= newest then
  return redis.error_reply(string.format('STALE %d,%d %d,%d', tonumber(ARGV[1]), 0, newest, 0))
end
local commit = call('HMGET', 'commit', 'branch', 'iteration')
local commit_branch, commit_iteration = tonumber(commit[1] or -1), tonumber(commit[2] or -1)

-- The same as below_commit in buffer/archived.py.
local function below_commit(state, branch, opened, consumed)
  if state == 'dropped' then
    return opened <= commit_iteration
  end
  if state ~= 'consumed' and state ~= 'abandoned' then
    return false
  end
  return branch < commit_branch or (branch == commit_branch and consumed <= commit_iteration)
end

local ids, files = {}, {}
for i = 3, #ARGV, 2 do
  ids[#ids + 1] = ARGV[i]
  files[#files + 1] = ARGV[i + 1]
end
fetch(ids)
for _, id in ipairs(ids) do
  local g = records[id]
  if not g or not below_commit(g.state, g.branch, g.iteration, g.consumed_iteration) then
    return refuse('group ' .. id .. ' is ' .. (g and g.state or 'unknown') .. '; only an ended one below the commit can be trimmed.')
  end
end

local trimmed = 0
for i, id in ipairs(ids) do
  local g = records[id]
  if g.archived == '' then
    call('UNLINK', 'payload:' .. id)
    call('ZREM', 'groups:' .. g.state, id)
    g.archived, g.bytes, changed[id] = files[i], 0, true
    trimmed = trimmed + 1
  end
end
save()
return trimmed
