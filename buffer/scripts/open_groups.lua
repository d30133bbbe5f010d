#!lua
-- Opens groups that are not there yet, their trajectories pending, in the order given, as long as the memory
-- that open trajectories may still need fits; the others are answered, and may be offered again later.
--
-- Arguments  ARGV[3] bytes free for what is open and opened (-1: no limit), then eight a group: group id, prompt
--            id, branch, iteration, stage, samples, most tokens of a response (0: unknown), packed prompt
-- Reads      records, sequence, counts
-- Writes     records, payload:*, groups:open, pending, sequence, counts, open, wake:claim
-- Returns    {how many were new, ids of those that did not fit}

local stale = check_fence()
if stale then
  return stale
end
local free = tonumber(ARGV[3])
local ids = {}
for i = 4, #ARGV, 8 do
  ids[#ids + 1] = ARGV[i]
end
fetch(ids)
local reserved = tonumber(call('HGET', 'counts', 'reserved') or 0)

local function open_group(id, prompt_id, branch, iteration, stage, samples, limit, prompt)
  local zeros = {}
  for name, kind in pairs(COLUMNS) do
    zeros[name] = string.rep('\0', samples * struct.size('<' .. kind))
  end
  zeros.state, zeros.span_iteration = string.rep(string.char(PENDING), samples), string.rep('\255', 4 * samples)
  add_record(id, {
    state = 'open', prompt_id = prompt_id, branch = branch, iteration = iteration, stage = stage, samples = samples,
    limit = limit, sequence = call('INCRBY', 'sequence', samples) - samples + 1, settled_by = -1,
    consumed_iteration = -1, drop_reason = '', archived = '', workers = {}, reasons = {}, bytes = #prompt,
    columns = zeros,
  })
  changed[id] = columns[id].state ~= nil
  call('HSET', 'payload:' .. id, 'prompt', prompt)
end

local opened, refused = 0, {}
for i = 4, #ARGV, 8 do
  local id, samples, limit, prompt = ARGV[i], tonumber(ARGV[i + 5]), tonumber(ARGV[i + 6]), ARGV[i + 7]
  if not records[id] then
    local needs = samples * (limit * TOKEN_BYTES + TRAJECTORY_BYTES) + #prompt
    if #refused > 0 or (free >= 0 and reserved + needs > free) then
      refused[#refused + 1] = id
    else
      reserved = reserved + needs
      opened = opened + 1
      open_group(id, ARGV[i + 1], tonumber(ARGV[i + 2]), tonumber(ARGV[i + 3]), ARGV[i + 4], samples, limit, prompt)
    end
  end
end
if opened > 0 then
  wake('claim')
end
save()
return {opened, refused}
