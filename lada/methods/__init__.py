"""One file per method; see lada/method.py for what each must hold."""
