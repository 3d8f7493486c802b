"""What a run costs, computed from configs and a sample of data: parameters, operations, memory, time, downloads."""
