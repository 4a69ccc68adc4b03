"""Every attribute name that agentguard writes, and no other file spells one.

As of 2026-11.  The `gen_ai.*` conventions are in development, have no release and move monthly, so
the names are our own constants and a test pins them; `error.type` alone is stable.  What the
conventions have no name for lies under `agentguard.*`, never under `gen_ai.*`.
"""

from __future__ import annotations

from typing import Final

ERROR_TYPE: Final = "error.type"

# --- generative AI conventions ---------------------------------------------------------------

OPERATION: Final = "gen_ai.operation.name"
PROVIDER: Final = "gen_ai.provider.name"
#: Given by the application alone; never made up from a run id or a trace id.
CONVERSATION: Final = "gen_ai.conversation.id"
AGENT_NAME: Final = "gen_ai.agent.name"
WORKFLOW_NAME: Final = "gen_ai.workflow.name"

REQUEST_MODEL: Final = "gen_ai.request.model"
RESPONSE_MODEL: Final = "gen_ai.response.model"
#: Cached tokens included.
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
#: Reasoning tokens included.
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
CACHE_READ_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
CACHE_WRITE_TOKENS: Final = "gen_ai.usage.cache_write.input_tokens"
#: The older name of `CACHE_WRITE_TOKENS`, which Jaeger still reads.
CACHE_CREATION_TOKENS: Final = "gen_ai.usage.cache_creation.input_tokens"
REASONING_TOKENS: Final = "gen_ai.usage.reasoning.output_tokens"

TOOL_NAME: Final = "gen_ai.tool.name"
TOOL_CALL_ID: Final = "gen_ai.tool.call.id"
TOOL_TYPE: Final = "gen_ai.tool.type"
#: Content: only where the application asked for it.
TOOL_ARGUMENTS: Final = "gen_ai.tool.call.arguments"
#: Content: only where the application asked for it.
TOOL_RESULT: Final = "gen_ai.tool.call.result"

# --- agentguard ------------------------------------------------------------------------------

TENANT: Final = "agentguard.tenant.id"
RUN_ID: Final = "agentguard.run.id"
RUN_STATE: Final = "agentguard.run.state"
#: Not `gen_ai.usage.*`: a back-end that sums over a trace would count twice.
RUN_INPUT_TOKENS: Final = "agentguard.run.input_tokens"
RUN_OUTPUT_TOKENS: Final = "agentguard.run.output_tokens"
RUN_COST: Final = "agentguard.run.cost.amount"
RUN_STEPS: Final = "agentguard.run.steps"
#: Followed by the name of any other resource, counters among them.
RUN_USAGE_PREFIX: Final = "agentguard.run.usage."
#: Followed by a key of the run's metadata.
RUN_METADATA_PREFIX: Final = "agentguard.run.metadata."
#: "<sequence>:<hash>" of the last event when the run ended: an anchor outside the log.
LOG_HEAD: Final = "agentguard.log.head"

#: The path of a scope, its own name last.
SCOPE_PATH: Final = "agentguard.scope.path"

#: The step's key: with the run's id it leads from a span to the events.
STEP_ID: Final = "agentguard.step.id"
STEP_KIND: Final = "agentguard.step.kind"
STEP_ATTEMPT: Final = "agentguard.step.attempt"

COST: Final = "agentguard.cost.amount"
COST_CURRENCY: Final = "agentguard.cost.currency"
#: "provider" or "local": who worked the amount out.
COST_SOURCE: Final = "agentguard.cost.source"
#: Followed by the name of a resource that `gen_ai.usage.*` has no name for.
USAGE_PREFIX: Final = "agentguard.usage."

#: "allow", "deny", or "shadow_deny": a limit that only observes had no room.
DECISION: Final = "agentguard.decision"
DENY_REASON: Final = "agentguard.deny.reason"

BUDGET_SCOPE: Final = "agentguard.budget.scope"
#: The resource, as a user knows it: usd, tokens, steps, ...
BUDGET_UNIT: Final = "agentguard.budget.unit"
BUDGET_LIMIT: Final = "agentguard.budget.limit"
BUDGET_SPENT: Final = "agentguard.budget.spent"
BUDGET_RESERVED: Final = "agentguard.budget.reserved"
BUDGET_REQUESTED: Final = "agentguard.budget.requested"

KILL_SCOPE: Final = "agentguard.kill.scope"
KILL_REASON: Final = "agentguard.kill.reason"

QUEUE: Final = "agentguard.queue.name"
#: "waiting", "delayed" or "running".
QUEUE_STATE: Final = "agentguard.queue.state"
