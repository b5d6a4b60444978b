"""The judge: KKT quantities, intervals and verdicts, status, reports; whoever produced the point."""
