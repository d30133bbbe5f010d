#!lua flags=no-writes
-- Whole trajectories in one answer: asyncio costs more per answer than the server per read. Changes nothing,
-- so it checks no fence; ARGV[1] and ARGV[2] are unused.
--
-- Arguments  ARGV[3] 1: with segments, 0: without; then three a group: id, number of samples, their numbers as
--            rows of NUMBER (buffer/records.py)
-- Reads      records, payload:*
-- Returns    flat list, three a group: a row of LOADED a sample; a drop reason a sample (none: no sample is
--            dropped); the packed prompt, then segments, if wanted, and components, if it has ended, by sample.
--            No rows for an unknown group or sample; for an archived group no rows, and the file as the last

local with_segments, ids = tonumber(ARGV[3]), {}
for i = 4, #ARGV, 3 do
  ids[#ids + 1] = ARGV[i]
end
fetch(ids)

local function load(id, samples)
  local g, c = records[id], columns[id]
  if not g or g.archived ~= '' then
    return '', {}, {g and g.archived}
  end
  local rows, names, reasons, dropped = {}, {'prompt'}, {}, false
  for number, sample in ipairs(samples) do
    local i = sample + 1
    if i > g.samples then
      return '', {}, {}
    end
    local state, parts, at = c.state[i], c.parts[i], #rows
    local ended = state >= SCORED
    rows[at + 1], rows[at + 2], rows[at + 3] = state, c.finish[i], c.attempts[i]
    rows[at + 4], rows[at + 5], rows[at + 6] = c.spans[i], c.tokens[i], parts
    rows[at + 7], rows[at + 8] = ended and 1 or 0, with_segments
    if with_segments == 1 then
      for part = 0, parts - 1 do
        names[#names + 1] = field(sample, part)
      end
    end
    if ended then
      names[#names + 1] = field(sample, 'score')
    end
    reasons[number] = state == DROPPED and g.reasons[c.reason[i]] or ''
    dropped = dropped or state == DROPPED
  end
  local values = call('HMGET', 'payload:' .. id, unpack(names, 1, math.min(#names, 1000)))
  for first = 1001, #names, 1000 do
    for _, value in ipairs(call('HMGET', 'payload:' .. id, unpack(names, first, math.min(first + 999, #names)))) do
      values[#values + 1] = value
    end
  end
  return pack_rows('BBI4I4I4I4BB', rows, #samples), dropped and reasons or {}, values
end

local answers = {}
for i = 4, #ARGV, 3 do
  local at = #answers
  local samples = unpack_rows('I2', ARGV[i + 2], tonumber(ARGV[i + 1]))
  answers[at + 1], answers[at + 2], answers[at + 3] = load(ARGV[i], samples)
end
return answers
