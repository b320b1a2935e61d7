"""Floor 5: the only place that knows MLflow. Training never waits for it.

MLflow is imported inside functions: importing these modules stays quick.
"""
