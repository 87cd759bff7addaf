"""The PostgreSQL store, as every replica reaches it. Imported only when the settings name one."""
