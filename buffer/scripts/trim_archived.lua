#!lua flags=allow-oom
-- Lets go of what the archive holds: prompts, trajectories, segments and components of ended groups. The group
-- stays with the name of its file. Groups above the newest commit are refused, since the redo log needs them.
-- All or nothing; a group that is trimmed already keeps its first pointer.
--
-- Arguments  ARGV[1] the archiver's token (ARGV[2] is ignored); from ARGV[3], two a group: id, archive file
-- Reads      archiver, commit, group:*
-- Writes     group:*, groups:*, prompt:*, trajectories, segments:*, components:*
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

local groups = {}
for i = 3, #ARGV, 2 do
  local g = call('HMGET', 'group:' .. ARGV[i], 'state', 'branch', 'iteration', 'consumed_iteration', 'samples', 'archived')
  if not g[1] or not below_commit(g[1], tonumber(g[2]), tonumber(g[3]), tonumber(g[4] or -1)) then
    return refuse('group ' .. ARGV[i] .. ' is ' .. (g[1] or 'unknown') .. '; only an ended one below the commit can be trimmed.')
  end
  groups[#groups + 1] = {id = ARGV[i], file = ARGV[i + 1], state = g[1], samples = tonumber(g[5]), archived = g[6]}
end

local trimmed = 0
for _, g in ipairs(groups) do
  call('ZREM', 'groups:' .. g.state, g.id)
  if not g.archived then
    for sample = 0, g.samples - 1 do
      local id = member(g.id, sample)
      call('HDEL', 'trajectories', id)
      call('UNLINK', 'segments:' .. id)
      call('UNLINK', 'components:' .. id)
    end
    call('UNLINK', 'prompt:' .. g.id)
    call('HSET', 'group:' .. g.id, 'archived', g.file)
    trimmed = trimmed + 1
  end
end
return trimmed
