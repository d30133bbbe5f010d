#!lua flags=allow-oom
-- Hands out finished trajectories for scoring, oldest first. They stay handed out until they are scored or
-- dropped, or until the next epoch.
--
-- Arguments  ARGV[3] limit, [4] nonce
-- Reads      finished, replies
-- Writes     finished, scoring, replies, wake:score
-- Returns    ids

local stale = check_fence()
if stale then
  return stale
end
local repeated = recall('scoring', ARGV[4])
if repeated then
  return repeated
end
local popped = call('ZPOPMIN', 'finished', ARGV[3])
local taken = {}
for i = 1, #popped, 2 do
  enqueue('scoring', popped[i], popped[i + 1])
  taken[#taken + 1] = popped[i]
end
if call('EXISTS', 'finished') == 1 then
  wake('score')
else
  call('DEL', 'wake:score')
end
if #taken > 0 then
  remember('scoring', ARGV[4], taken)
end
save()
return taken
