#!lua flags=allow-oom
-- Takes open and complete groups back to the end of an iteration: tokens, ends and scores of later ones are
-- forgotten, and their samples wait again as they did then. What was dropped stays so. Used by deterministic
-- resumption alone: everywhere else, a token that was flushed is never generated again.
--
-- Arguments  ARGV[3] iteration
-- Reads      groups:open, groups:complete, records, payload:*
-- Writes     records, payload:*, pending, parked, resting, finished, scoring, leases, groups:*, counts, open,
--            wake:claim
-- Returns    how many tokens were forgotten

local stale = check_fence()
if stale then
  return stale
end
local limit, forgotten = tonumber(ARGV[3]), 0

-- Removes a field of a group's payload, if it is there.
local function forget(id, name)
  local packed = call('HGET', 'payload:' .. id, name)
  if packed then
    call('HDEL', 'payload:' .. id, name)
    records[id].bytes = records[id].bytes - #packed
  end
end

local function rewind(id, i)
  local c, kept, tokens, version, last = columns[id], 0, 0, 0, -1
  for part = 0, c.parts[i] - 1 do
    local packed = call('HGET', 'payload:' .. id, field(i - 1, part))
    -- The header of buffer/segments.py: digest, format, flags, bytes of names, tokens, weight version, iteration.
    local _, _, _, _, count, made_by, iteration = struct.unpack('<I8BBI2I4i8i8', packed)
    if iteration > limit then
      break
    end
    kept, tokens, version, last = part + 1, tokens + count, made_by, iteration
  end
  for part = kept, c.parts[i] - 1 do
    forget(id, field(i - 1, part))
  end
  forget(id, field(i - 1, 'score'))
  forgotten = forgotten + c.tokens[i] - tokens
  c.parts[i], c.tokens[i], c.weights[i] = kept, tokens, version
  c.spans[i], c.span_iteration[i] = math.max(c.spans[i] - 1, 0), last
  c.state[i], c.worker[i], c.finish[i] = tokens > 0 and RESTING or PENDING, 0, 0
end

for _, state in ipairs({'open', 'complete'}) do
  local ids = call('ZRANGE', 'groups:' .. state, 0, -1)
  fetch(ids)
  for _, id in ipairs(ids) do
    local g, c = records[id], columns[id]
    for i = 1, g.samples do
      if c.state[i] ~= DROPPED and c.span_iteration[i] > limit then
        rewind(id, i)
        g.state, g.settled_by, changed[id] = 'open', -1, true
      end
    end
  end
end
wake('claim')
save()
return forgotten
