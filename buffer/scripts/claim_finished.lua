#!lua flags=allow-oom
-- Hands out finished trajectories for scoring, oldest first. They stay handed out until they are scored or
-- dropped, or until the next epoch.
--
-- Arguments  ARGV[3] limit, [4] nonce
-- Reads      finished, records, replies
-- Writes     records, finished, scoring, replies, counts, open, wake:score
-- Returns    flat list, two a group: id, rows of TAKEN (buffer/records.py). What is handed out does not change until
--            it is scored, so the caller reads the payload by itself: a script would copy it twice

local stale = check_fence()
if stale then
  return stale
end
local left, nonce = tonumber(ARGV[3]), ARGV[4]
local repeated = recall('scoring', nonce)
if repeated then
  return repeated
end
local TAKEN = 'I2BI4I4I4I4'
local taken, first = {}, 0
while left > 0 do
  local last = first + math.min(left, 16) - 1
  local ids = call('ZRANGE', 'finished', first, last)
  if #ids == 0 then
    break
  end
  fetch(ids)
  for _, id in ipairs(ids) do
    local c, found = columns[id], {}
    for i, state in ipairs(c.state) do
      if left > 0 and state == FINISHED then
        c.state[i] = SCORING
        local at = #found
        found[at + 1], found[at + 2], found[at + 3] = i - 1, c.finish[i], c.attempts[i]
        found[at + 4], found[at + 5], found[at + 6] = c.spans[i], c.tokens[i], c.parts[i]
        left = left - 1
      end
    end
    if #found > 0 then
      changed[id] = true
      taken[#taken + 1] = id
      taken[#taken + 1] = pack_rows(TAKEN, found, #found / 6)
    end
  end
  first = last + 1
end
if #taken > 0 then
  remember('scoring', nonce, taken)
end
save()
rearm('score', 'finished')
return taken
