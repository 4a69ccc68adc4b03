"""DBOS on SQLite: a `@DBOS.workflow()` of `@DBOS.step()`s, that is cancelled and, as a replay, forked."""

from dbos import DBOS, DBOSClient, SetWorkflowID

REQUIRES = "dbos==3.4.0"
SAYS = {"after each step": "fsynced: survives power loss"}


def engine(folder, body):
    url = f"sqlite:///{folder}/dbos.db"
    DBOS(config={"name": "peer", "system_database_url": url, "run_admin_server": False, "log_level": "ERROR"})

    @DBOS.step()
    def step(number):
        return body(number)

    @DBOS.workflow()
    def flow(steps):
        for number in range(1, steps + 1):
            step(number)

    DBOS.launch()

    def run(name, steps):
        with SetWorkflowID(name):
            flow(steps)

    yield run, lambda name, steps: DBOS.fork_workflow(name, steps + 1).get_result()
    DBOS.destroy()


def killer(folder):
    return DBOSClient(system_database_url=f"sqlite:///{folder}/dbos.db").cancel_workflow
