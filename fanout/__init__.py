"""Pure decisions of the gateway: who gets which bytes. No sockets, no broker, no clock, no tasks."""
