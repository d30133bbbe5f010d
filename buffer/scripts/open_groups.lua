#!lua
-- Opens groups that are not there yet, their trajectories pending, in the order given.
--
-- Arguments  from ARGV[3], seven a group: group id, prompt id, branch, iteration, stage, samples, prompt
-- Reads      group:*, sequence
-- Writes     group:*, prompt:*, trajectories, groups:open, pending, sequence, counts, open, wake:claim
-- Returns    how many were new

local stale = check_fence()
if stale then
  return stale
end

local function open_group(id, prompt_id, branch, iteration, stage, samples, prompt)
  local first = call('INCRBY', 'sequence', samples) - samples + 1
  call('HSET', 'group:' .. id, 'prompt_id', prompt_id, 'state', 'open', 'branch', branch, 'iteration', iteration,
    'stage', stage, 'samples', samples, 'sequence', first, 'scored', 0, 'dropped', 0)
  call('SET', 'prompt:' .. id, prompt)
  call('ZADD', 'groups:open', first, id)
  for sample = 0, samples - 1 do
    local trajectory = member(id, sample)
    records[trajectory] = {group = id, state = 'pending', opened = tonumber(iteration), sequence = first + sample}
    changed[trajectory] = true
    enqueue('pending', trajectory, first + sample)
  end
  count('groups.open', 1)
  count('trajectories.pending', samples)
  count_open(tonumber(iteration), 'pending', samples)
end

local opened = 0
for i = 3, #ARGV, 7 do
  if call('EXISTS', 'group:' .. ARGV[i]) == 0 then
    open_group(ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4], tonumber(ARGV[i + 5]), ARGV[i + 6])
    opened = opened + 1
  end
end
if opened > 0 then
  wake('claim')
end
save()
return opened
