-- What a migration begins with: roles, which belong to the server, and the schema.

-- name: roles
-- Make the roles that are missing.
DO $$
DECLARE
    wanted text;
BEGIN
    FOREACH wanted IN ARRAY ARRAY[
        'agentguard_owner', 'agentguard_tenant', 'agentguard_agent', 'agentguard_worker', 'agentguard_operator'
    ] LOOP
        IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = wanted) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', wanted);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN
                NULL; -- made by another database of this server meanwhile
            END;
        END IF;
    END LOOP;
    -- Operators bind tenants' logins.
    IF NOT EXISTS (
        SELECT 1 FROM pg_auth_members WHERE admin_option
            AND roleid = 'agentguard_tenant'::regrole AND member = 'agentguard_operator'::regrole
    ) THEN
        BEGIN
            GRANT agentguard_tenant TO agentguard_operator WITH ADMIN OPTION;
        EXCEPTION WHEN insufficient_privilege OR unique_violation OR internal_error THEN
            NULL; -- the roles are another login's, who migrates too; or another database of this server does it
        END;
    END IF;
    IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
        BEGIN
            EXECUTE format('GRANT agentguard_owner TO %I', current_user);
        EXCEPTION WHEN insufficient_privilege THEN
            NULL; -- whether it is a member already, the next statements tell
        END;
    END IF;
END;
$$;

-- name: schema
-- Make the schema, and go on as its owner.
CREATE SCHEMA IF NOT EXISTS agentguard AUTHORIZATION agentguard_owner;

-- name: become_owner
-- Go on as the owner of the schema, to the end of the transaction.
SET LOCAL ROLE agentguard_owner;

-- name: versions
-- The table of the scripts that were carried out.
CREATE TABLE IF NOT EXISTS agentguard.migration (
    version integer PRIMARY KEY,
    name text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);
