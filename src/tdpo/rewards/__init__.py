"""What responses are worth: functions and classifiers, checked and combined."""
