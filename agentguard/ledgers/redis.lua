-- The books of a ledger on Redis.  Each call is one act: all of it is done, or nothing.
--
--   {prefix}:books             hash    `generation`, and `account:<name>` for each account that there is
--   {prefix}:account:<name>    hash    `path` and `budget`; what is counted: `spent:`, `reserved:` and
--                                      `excess:` with a resource, `calls:` with a pattern; what the budget
--                                      limits: `limit:` with a resource, `may:` with a pattern; `full`, a resource
--                                      that has had more than can be counted
--   {prefix}:held              hash    by id, what steps hold
--   {prefix}:charged           set     the ids of those that are spent until somebody knows better
--   {prefix}:leases            zset    until when each holder is taken to live: ms of the server's clock
--   {prefix}:holder:<holder>   set     the ids of what it holds, the charged ones left out
--   {prefix}:settled:<digest>  string  that a reservation was settled, or one of this nonce given back; runs out
--
-- Numbers here are doubles, so amounts come and go as text, HINCRBY adds them up, and what is spent and
-- reserved of a thing is kept at or below MOST, up to which doubles are exact.  Above it, sums are rounded
-- but stay above, so every comparison is right.

local MOST = 9007199254740991

local act, ask = ARGV[1], cjson.decode(ARGV[2])
local books = KEYS[1]
local root = string.sub(books, 1, -#'books' - 1)
local held, charged, leases = root .. 'held', root .. 'charged', root .. 'leases'
local generation = redis.call('HGET', books, 'generation')

local function key_of(name) return root .. 'account:' .. name end
local function ids_of(holder) return root .. 'holder:' .. holder end

local function mark_of(id)
  return root .. 'settled:' .. redis.sha1hex(generation .. '\n' .. id)
end

local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function live(holder, lease)
  redis.call('ZADD', leases, string.format('%.0f', now() + lease), holder)
end

-- Whether one generation is newer than another; they have more digits than a double.
local function newer(one, other)
  if #one ~= #other then return #one > #other end
  return one > other
end

local function behind() return {'behind', generation or '0'} end
local function lost_books() return {'behind', '0'} end

-- An account's fields; nil where the books name it and it is gone: the server has made room for others.
local function load(name)
  local flat, fields = redis.call('HGETALL', key_of(name)), {}
  for at = 1, #flat, 2 do fields[flat[at]] = flat[at + 1] end
  if #flat == 0 and redis.call('HEXISTS', books, 'account:' .. name) == 1 then return nil end
  return fields
end

local function load_all(names)
  local accounts = {}
  for _, name in ipairs(names) do
    accounts[name] = load(name)
    if not accounts[name] then return nil end
  end
  return accounts
end

local function answer(names)
  local told = {'ok'}
  for _, name in ipairs(names) do
    told[#told + 1] = name
    told[#told + 1] = redis.call('HGETALL', key_of(name))
  end
  return told
end

local function count(fields, kind, name) return tonumber(fields[kind .. name] or '0') end
local function used(fields, resource) return count(fields, 'spent:', resource) + count(fields, 'reserved:', resource) end

-- Call `visit` with each pattern that a step's calls are counted under.
local function patterns(step, visit)
  visit(step.name)
  if step.name ~= 'kind:' .. step.kind then visit('kind:' .. step.kind) end
end

-- The amount by resource, as text, of a list of pairs.
local function by_resource(pairs_)
  local amounts = {}
  for _, pair in ipairs(pairs_) do amounts[pair[1]] = pair[2] end
  return amounts
end

-- The first resource of which an account would have more than can be counted.
local function too_much(fields, less, more)
  local off = by_resource(less)
  for _, pair in ipairs(more) do
    local resource = pair[1]
    if used(fields, resource) - tonumber(off[resource] or '0') + tonumber(pair[2]) > MOST then return resource end
  end
end

-- The rule at the limit: `Account.refusal` of agentguard/budget/account.py is its definition.
local function refusal(account, fields, step)
  local function no(resource, reserved, requested, limit)
    return {'refused', account.name, fields.path or account.path, resource,
      fields['spent:' .. resource] or '0', reserved or '0', requested, limit}
  end
  local limits, reserve = by_resource(account.limits), by_resource(step.reserve)
  for _, pair in ipairs(step.reserve) do
    local resource, amount = pair[1], tonumber(pair[2])
    local limit = limits[resource]
    if limit and amount > 0 and used(fields, resource) + amount > tonumber(limit) then
      return no(resource, fields['reserved:' .. resource], pair[2], limit)
    end
  end
  if ask.postpaid then
    for _, pair in ipairs(account.limits) do
      local resource, limit = pair[1], pair[2]
      if tonumber(reserve[resource] or '0') == 0 and used(fields, resource) >= tonumber(limit) then
        return no(resource, fields['reserved:' .. resource], '0', limit)
      end
    end
  end
  for _, pair in ipairs(account.calls) do
    local pattern, limit = pair[1], pair[2]
    local mine = pattern == step.name or pattern == 'kind:' .. step.kind
    if mine and count(fields, 'calls:', pattern) + 1 > tonumber(limit) then
      return {'refused', account.name, fields.path or account.path, 'calls:' .. pattern,
        fields['calls:' .. pattern] or '0', '0', '1', limit}
    end
  end
end

-- Whether one who gives back a reservation is who holds it: `Reservation.is_of`.
local function is_of(known, step)
  return known.holder == step.holder and (known.nonce == '' or known.nonce == step.nonce)
end

-- Enter an account, or the budget that is in force now, on the server and in `fields`.
local function open(account, fields)
  if fields.budget == account.budget then return end
  local key, old = key_of(account.name), {}
  for field in pairs(fields) do
    if string.find(field, '^limit:') or string.find(field, '^may:') then old[#old + 1] = field end
  end
  for _, field in ipairs(old) do
    redis.call('HDEL', key, field)
    fields[field] = nil
  end
  local function set(field, value)
    redis.call('HSET', key, field, value)
    fields[field] = value
  end
  set('path', fields.path or account.path)
  set('budget', account.budget)
  for _, pair in ipairs(account.limits) do set('limit:' .. pair[1], pair[2]) end
  for _, pair in ipairs(account.calls) do set('may:' .. pair[1], pair[2]) end
  redis.call('HSET', books, 'account:' .. account.name, '')
end

local function change(key, kind, amounts, sign)
  for _, pair in ipairs(amounts) do
    if pair[2] ~= '0' then redis.call('HINCRBY', key, kind .. pair[1], sign .. pair[2]) end  -- there is no -0
  end
end

local function change_calls(key, fields, step, by)
  patterns(step, function(pattern)
    if fields['may:' .. pattern] then redis.call('HINCRBY', key, 'calls:' .. pattern, by) end
  end)
end

-- Enter what a step holds; its accounts are open.
local function hold(step, text, accounts)
  for _, name in ipairs(step.accounts) do
    change(key_of(name), 'reserved:', step.reserve, '')
    change_calls(key_of(name), accounts[name], step, 1)
  end
  redis.call('HSET', held, step.id, text)
  redis.call('SADD', ids_of(step.holder), step.id)
end

-- Enter what was granted and whose record was lost, whatever room there is.
local function put(step, text, accounts)
  for _, name in ipairs(step.accounts) do
    if not accounts[name].budget then
      open({name = name, path = name, budget = '{}', limits = {}, calls = {}}, accounts[name])
    end
  end
  hold(step, text, accounts)
  redis.call('ZADD', leases, 'NX', '0', step.holder)
end

local function full(accounts, less, more)
  for name, fields in pairs(accounts) do
    local resource = fields.full or too_much(fields, less, more)
    if resource then return {'full', name, resource} end
  end
end

-- Charge what a step used in the place of what it holds, or give that back.
local function close(step, usage, was_charged, accounts)
  local reserve = by_resource(step.reserve)
  for _, name in ipairs(step.accounts) do
    local key = key_of(name)
    change(key, was_charged and 'spent:' or 'reserved:', step.reserve, '-')
    if not usage then
      change_calls(key, accounts[name], step, -1)
    else
      change(key, 'spent:', usage, '')
      for _, pair in ipairs(usage) do
        local over = tonumber(pair[2]) - tonumber(reserve[pair[1]] or '0')
        if over > 0 and accounts[name]['limit:' .. pair[1]] then
          redis.call('HINCRBY', key, 'excess:' .. pair[1], string.format('%.0f', over))
        end
      end
    end
  end
end

local acts = {}

function acts.reserve()
  local step = cjson.decode(ask.held)
  if generation ~= step.generation then return behind() end
  local known = redis.call('HGET', held, step.id)
  if known then
    local was_charged = redis.call('SISMEMBER', charged, step.id)
    local other = cjson.decode(known)
    local again = other.holder == step.holder and other.nonce == step.nonce and was_charged == 0
    return again and answer(step.accounts) or {'taken', known, was_charged}
  end
  if redis.call('EXISTS', mark_of(step.id), mark_of(step.nonce)) > 0 then return {'taken'} end
  local accounts = load_all(step.accounts)
  if not accounts then return lost_books() end
  for _, account in ipairs(ask.accounts) do
    local no = account.enforce and refusal(account, accounts[account.name], step)
    if no then return no end
  end
  local no = full(accounts, {}, step.reserve)
  if no then return no end
  for _, account in ipairs(ask.accounts) do open(account, accounts[account.name]) end
  hold(step, ask.held, accounts)
  live(step.holder, ask.lease)
  return answer(step.accounts)
end

function acts.settle()
  local step, usage = cjson.decode(ask.held), ask.usage
  if not generation or newer(step.generation, generation) then return behind() end
  local known = redis.call('HGET', held, step.id)
  local lost = not known and usage and step.generation == generation and redis.call('EXISTS', mark_of(step.id)) == 0
  local of = known and cjson.decode(known) or step
  if not usage and step.nonce ~= '' then redis.call('SET', mark_of(step.nonce), '', 'EX', ask.remember) end
  if not lost and not (known and (usage or is_of(of, step))) then return answer(step.accounts) end
  local was_charged = redis.call('SISMEMBER', charged, of.id) == 1
  if was_charged and not ask.final then return answer(step.accounts) end
  local accounts = load_all(of.accounts)
  if not accounts then return lost_books() end
  local no = full(accounts, lost and {} or of.reserve, usage or {})
  if no then
    redis.call('HSET', key_of(no[2]), 'full', no[3])  -- nothing is granted any more on what cannot be counted
    return no
  end
  if lost then put(of, ask.held, accounts) end
  -- First what makes room: a server without memory lets a script go on that has begun.
  redis.call('SREM', ids_of(of.holder), of.id)
  if ask.final then
    redis.call('HDEL', held, of.id)
    redis.call('SREM', charged, of.id)
  else
    redis.call('SADD', charged, of.id)
  end
  close(of, usage, was_charged, accounts)
  if ask.final and usage then redis.call('SET', mark_of(of.id), '', 'EX', ask.remember) end
  return answer(step.accounts)
end

function acts.renew()
  if generation ~= ask.generation then return behind() end
  live(ask.holder, ask.lease)
  for _, text in ipairs(ask.held) do
    local step = cjson.decode(text)
    local known = redis.call('HEXISTS', held, step.id) == 1 or redis.call('EXISTS', mark_of(step.id)) == 1
    if not known and step.generation == generation then
      local accounts = load_all(step.accounts)
      if not accounts then return lost_books() end
      local no = full(accounts, {}, step.reserve)
      if no then return no end
      put(step, text, accounts)
    end
  end
  return {'ok'}
end

function acts.overdue()
  local told = {'ok'}
  for _, holder in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', string.format('(%.0f', now()))) do
    local ids = redis.call('SMEMBERS', ids_of(holder))
    if #ids == 0 then redis.call('ZREM', leases, holder) end
    for _, id in ipairs(ids) do told[#told + 1] = redis.call('HGET', held, id) or nil end
  end
  return told
end

function acts.rebuild()
  if generation and newer(generation, ask.generation) then return behind() end
  if generation == ask.generation then return {'ok'} end  -- it was done, and its answer was lost
  for _, account in ipairs(ask.accounts) do
    local fields = {}
    for _, pair in ipairs(account.reserved) do fields['reserved:' .. pair[1]] = pair[2] end
    local resource = too_much(fields, {}, account.spent) or too_much({}, {}, account.reserved)
    if resource then return {'full', account.name, resource} end
  end
  for _, field in ipairs(redis.call('HKEYS', books)) do
    if string.find(field, '^account:') then redis.call('DEL', root .. field) end
  end
  for _, holder in ipairs(redis.call('ZRANGE', leases, 0, -1)) do redis.call('DEL', ids_of(holder)) end
  redis.call('DEL', books, held, charged)
  redis.call('HSET', books, 'generation', ask.generation)
  for _, account in ipairs(ask.accounts) do
    open(account, {})
    for _, kind in ipairs({'spent', 'reserved', 'excess', 'called'}) do
      change(key_of(account.name), (kind == 'called' and 'calls' or kind) .. ':', account[kind], '')
    end
  end
  for _, text in ipairs(ask.held) do
    local step = cjson.decode(text)
    redis.call('HSET', held, step.id, text)
    redis.call('SADD', ids_of(step.holder), step.id)
    redis.call('ZADD', leases, 'NX', '0', step.holder)
  end
  return {'ok'}
end

function acts.accounts() return answer(ask.names) end

return acts[act]()
