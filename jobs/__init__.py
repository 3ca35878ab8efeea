"""The host side: launching stages as jobs. The only importer of submitit; sees ring 0 of lada alone."""
