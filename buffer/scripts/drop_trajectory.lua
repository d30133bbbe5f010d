#!lua flags=allow-oom
-- Excludes a trajectory; what it holds stays.
--
-- Arguments  ARGV[3] group id, [4] sample, [5] reason
-- Reads      records
-- Writes     records, groups:*, the queues its group is in, counts, open
-- Returns    1 when the group became complete or dropped by it, else 0

local stale = check_fence()
if stale then
  return stale
end
local id, sample = ARGV[3], tonumber(ARGV[4])
fetch({id})
local g = records[id]
if not g or sample >= g.samples then
  return refuse('trajectory ' .. member(id, sample) .. ' is unknown.')
end
drop(id, sample, ARGV[5])
save()
return g.settled_by == sample and (g.state == 'complete' or g.state == 'dropped') and 1 or 0
