"""The bundled filesystems, one room each; they import pyfusekit.core and never each other."""
