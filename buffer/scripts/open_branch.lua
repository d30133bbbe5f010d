#!lua flags=allow-oom
-- A new branch from an older commit. Groups consumed outside the new branch's line become abandoned. Open and
-- complete groups carry over to the new branch; with drop_partials, those that hold tokens of weights newer
-- than the restored ones are dropped whole, since a group without its long samples would mislead training.
-- Asking again before anything was consumed on the new branch returns the same number.
--
-- Arguments  ARGV[3] parent branch, [4] iteration of the restored commit, [5] drop_partials (0 or 1)
-- Reads      branches, consumed:*, groups:open, groups:complete, weights:*, records
-- Writes     fence, branches, records, groups:*, consumed:*, the queues that groups are in, counts, open
-- Returns    the number of the new branch

local stale = check_fence()
if stale then
  return stale
end
local parent, from = tonumber(ARGV[3]), tonumber(ARGV[4])
local newest = call('HLEN', 'branches')
local origin = ARGV[3] .. ':' .. ARGV[4]
if parent < 0 or parent > newest then
  return refuse('branch ' .. ARGV[3] .. ' is unknown.')
end
local commit_branch = tonumber(call('HGET', 'commit', 'branch') or -1)
if newest > 0 and call('HGET', 'branches', newest) == origin and commit_branch < newest
  and call('EXISTS', 'consumed:' .. newest) == 0 then
  touch()
  return newest
end

-- The last iteration of each branch that the new one builds upon.
local line = {}
local ancestor, limit = parent, from
while ancestor do
  line[ancestor] = limit
  local above = call('HGET', 'branches', ancestor)
  if above then
    local branch, iteration = string.match(above, '^(%-?%d+):(%-?%d+)$')
    ancestor, limit = tonumber(branch), math.min(limit, tonumber(iteration))
  else
    ancestor = nil
  end
end

local function abandon(branch)
  local above = line[branch] and '(' .. line[branch] or '-inf'
  local ids = call('ZRANGEBYSCORE', 'consumed:' .. branch, above, '+inf')
  fetch(ids)
  for _, id in ipairs(ids) do
    records[id].state, changed[id] = 'abandoned', true
  end
  call_in_parts('ZREM', 'consumed:' .. branch, ids)
end

-- Whether weights lie on the new branch's line. Their number does not say: what a recovery trains again gets new ones.
local known_versions = {[0] = true}
local function is_on_line(version)
  if known_versions[version] == nil then
    local w = call('HMGET', 'weights:' .. version, 'branch', 'iteration')
    local last = w[1] and line[tonumber(w[1])]
    known_versions[version] = (last and tonumber(w[2]) <= last) and true or false
  end
  return known_versions[version]
end

local function is_newer(id)
  for _, version in ipairs(columns[id].weights) do
    if not is_on_line(tonumber(version)) then
      return true
    end
  end
  return false
end

local branch = newest + 1
for known = 0, newest do
  abandon(known)
end
for _, state in ipairs({'open', 'complete'}) do
  local ids = call('ZRANGE', 'groups:' .. state, 0, -1)
  fetch(ids)
  for _, id in ipairs(ids) do
    records[id].branch, changed[id] = branch, true
    if ARGV[5] == '1' and is_newer(id) then
      drop_group(id, 'rollback')
    end
  end
end
call('HSET', 'branches', branch, origin)
save()
return branch
