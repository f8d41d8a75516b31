"""The demo: real flights, real models, real processes. `make demo` runs it, `python -m demo --help` explains.

Of the departures of one day and route, which will be late? A feature server and a model server stand
beside the service, and the service derives every entity from the flight: its plane, its carrier, its two
airports, and the weather and the departure board of its origin in its hour.
"""
