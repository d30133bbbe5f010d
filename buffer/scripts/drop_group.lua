#!lua flags=allow-oom
-- Excludes an open or complete group with its trajectories; what they hold stays.
--
-- Arguments  ARGV[3] group id, [4] reason
-- Reads      records
-- Writes     records, groups:*, the queues it is in, counts, open
-- Returns    1 if it was dropped now, 0 if it had been before

local stale = check_fence()
if stale then
  return stale
end
fetch({ARGV[3]})
local g = records[ARGV[3]]
local state = g and g.state or 'unknown'
if state == 'dropped' then
  return 0
end
if state ~= 'open' and state ~= 'complete' then
  return refuse('group ' .. ARGV[3] .. ' is ' .. state .. '; only an open or complete one can be dropped.')
end
drop_group(ARGV[3], ARGV[4])
save()
return 1
